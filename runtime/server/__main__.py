"""python -m runtime.server: load the target, open the port, verify."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from runtime.arguments import parse
from runtime.config import ConfigError, ServerConfig, prepare_threads
from runtime.logs import configure
from runtime.system import ignore_hangup
from runtime.terminal import TRY_AGAIN_STATUS, called, fail, importing, run

if TYPE_CHECKING:
    from runtime.server.start import OpenTarget


def main(open_engine: OpenTarget | None = None) -> int:
    """Exit status: 0 after a drain, 2 when the options or the model cannot be used.

    75 when they may be usable in a while: the hub is not reached, an address is not there yet,
    or the device failed and may not in a new process.
    `open_engine` loads the target, for who runs it in another way.
    """
    # files are read again at it once they have been read; before that there is nothing to be done
    ignore_hangup()
    try:
        config = parse(ServerConfig, sys.argv[1:], os.environ, called("runtime.server"))
    except ConfigError as error:
        # torchrun starts several processes with the same options: one of each machine tells
        is_one_more = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["LOCAL_RANK"] != "0"
        return 2 if is_one_more else fail("runtime.server", error)
    configure(config.log_level, config.log_format)
    prepare_threads(config, os.environ)
    with importing(terminated=0):
        from runtime.server.start import StartError, open_target, start
    try:
        start(config, open_engine or open_target)
    except StartError as error:
        status = fail("runtime.server", error) if str(error) else 2
        return TRY_AGAIN_STATUS if error.passes else status
    return 0


def program() -> NoReturn:
    """The whole program, as a console script calls it."""
    sys.exit(run("runtime.server", main))


if __name__ == "__main__":
    program()
