"""python -m runtime.bench.paced_server STEP_S ...: the server on an accelerator of a stated speed.

The rest of the arguments are those of python -m runtime.server, and so is everything else; only a
step of the target takes at least STEP_S seconds.
"""

import sys

from runtime.bench.device import PacedTarget
from runtime.config import ServerConfig
from runtime.console import Terminal
from runtime.server import __main__ as server
from runtime.server.start import open_target


def main() -> int:
    """The server's own exit status."""
    step_s = float(sys.argv.pop(1))

    def open_paced(config: ServerConfig, console: Terminal) -> PacedTarget:
        return PacedTarget(open_target(config, console), step_s)

    return server.main(open_paced)


if __name__ == "__main__":
    sys.exit(main())
