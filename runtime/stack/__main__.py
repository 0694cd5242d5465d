"""python -m runtime.stack: the network stack of this host, for servers and edges with --stack.

It reads the options and becomes the daemon, a C++ program without Python; or it asks one that runs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.arguments import parse
from runtime.config import ConfigError
from runtime.options import Checked, flag, option
from runtime.terminal import called, fail, inert, run

MODULES = ("shm", "unix", "tcp", "emulated")
MOST_RATE = 10**12
# the options of the daemon itself, csrc/stack/options.cpp
DAEMON = (
    *("socket", "module", "delay_ms", "link_rate", "loss"),
    *("rate", "user_rate", "share_by", "coalesce_us", "max_guests"),
)


@dataclass(frozen=True)
class StackConfig(Checked):
    """The network stack as a module: it has the connections of this host's servers and edges."""

    socket: str = option(
        "", "Unix socket where servers and edges attach, as their --stack names it"
    )
    module: str = option(
        "shm",
        "between processes of this host: a memory that they share, Unix sockets or TCP; emulated: "
        "TCP as on a link of --delay-ms, --link-rate and --loss, to other hosts as well",
        choices=MODULES,
    )
    delay_ms: float = option(0.0, "of an emulated link, one way", minimum=0, maximum=10_000)
    link_rate: int = option(0, "of an emulated link, bytes/s; 0: any", minimum=0, maximum=MOST_RATE)
    loss: float = option(
        0.0, "of an emulated link, the share of segments lost", minimum=0, maximum=0.5
    )
    rate: int = option(0, "bytes/s that all send together; 0: any", minimum=0, maximum=MOST_RATE)
    user_rate: int = option(0, "bytes/s that one user sends; 0: any", minimum=0, maximum=MOST_RATE)
    share_by: str = option(
        "user", "who has a share of its own: a user of this host, or each process",
        choices=("user", "process"),
    )  # fmt: skip
    coalesce_us: int = option(
        0, "while several are active, look for news once in so many us: less processor time for "
        "more delay; 0: at once", minimum=0, maximum=10_000,
    )  # fmt: skip
    shared: bool = option(False, "let other users of this host attach")
    max_guests: int = option(256, "processes attached at once", minimum=1, maximum=16384)
    move: str = option(
        "", "have the stack that runs use this module from now on", choices=("", *MODULES)
    )
    status: bool = option(False, "print what the stack that runs has to do")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.socket:
            raise ConfigError("--socket is missing: the path where servers and edges attach")


def main() -> int:
    """Exit status: 0 after SIGTERM or an answer, 2 when something has to be mended by the user."""
    try:
        config = parse(StackConfig, sys.argv[1:], os.environ, called("runtime.stack"))
    except ConfigError as error:
        return fail("runtime.stack", error)
    try:
        from runtime.stack import _stack
    except ImportError as error:
        why = (
            "install it again, it was built without"
            if sys.platform == "linux"
            else "Linux alone has it"
        )
        return fail("runtime.stack", f"the stack is not there ({error}); {why}")
    if config.move or config.status:
        return _ask(config)
    program = Path(_stack.__file__).with_name("specedge-stack")
    os.execv(program, [str(program), *arguments(config)])


def arguments(config: StackConfig) -> list[str]:
    """The same options for the daemon."""
    spelled = [(flag(name), str(getattr(config, name))) for name in DAEMON]
    return [word for pair in spelled for word in pair] + ["--shared"] * config.shared


def _ask(config: StackConfig) -> int:
    from runtime.stack import _stack

    try:
        if config.move:
            print(inert(_stack.move(config.socket, config.move)))
        else:
            print(inert(_stack.status(config.socket)))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return fail("runtime.stack", f"no specedge-stack at {config.socket}: {reason}")
    return 0


def program() -> NoReturn:
    """The whole program, as a console script calls it."""
    sys.exit(run("runtime.stack", main))


if __name__ == "__main__":
    program()
