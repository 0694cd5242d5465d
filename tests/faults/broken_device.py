"""python -m tests.faults.broken_device PASSES ...: a server whose device fails after so many.

The rest of the arguments are those of python -m runtime.server.
"""

import sys

from torch import Tensor

from runtime.config import ServerConfig
from runtime.console import Terminal
from runtime.model.engine import Engine, Rows
from runtime.model.staging import Parcel
from runtime.server import __main__ as server
from runtime.server.start import open_target


class Breaking(Engine):
    """Fails at every pass from a certain one on."""

    passes_left = 0

    def run(self, rows: Rows, parcel: Parcel, drawn: Tensor | None = None) -> Tensor:
        self.passes_left -= 1
        if self.passes_left < 0:
            raise RuntimeError("an illegal memory access was encountered")
        return super().run(rows, parcel, drawn)


def main() -> int:
    """The server's own exit status."""
    passes = int(sys.argv.pop(1))

    def open_breaking(config: ServerConfig, console: Terminal) -> Engine:
        opened = open_target(config, console)
        engine = Breaking(opened.model, opened.kv)
        engine.passes_left = passes
        return engine

    return server.main(open_breaking)


if __name__ == "__main__":
    sys.exit(main())
