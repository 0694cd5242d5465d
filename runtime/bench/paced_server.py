"""python -m runtime.bench.paced_server STEP_S ...: the server on an accelerator of a stated speed.

The rest of the arguments are those of python -m runtime.server, and so is everything else; only a
step of the target takes at least STEP_S seconds.
"""

import sys

from runtime.bench.device import paced_engines
from runtime.server import __main__ as server
from runtime.server import start


def main() -> int:
    """The server's own exit status."""
    with paced_engines(start, float(sys.argv.pop(1))):
        return server.main()


if __name__ == "__main__":
    sys.exit(main())
