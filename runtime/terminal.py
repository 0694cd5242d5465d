"""What reaches a terminal: text that only shows, and an end without a traceback.

A terminal obeys control characters, and text comes from models, peers, files and their names. Here
they become visible (ESC is shown as ␛), but for tab and newline. Knows nothing of where text comes
from, and touches no other character: what bidirectional text does stays in its line.
"""

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, EIO, EMFILE, ENFILE, ENOSPC
from pathlib import PurePath
from signal import SIG_IGN, SIGINT, SIGTERM, Signals, getsignal, signal
from typing import NoReturn, TextIO

from runtime.system import BROKEN_PIPE_STATUS

# As in sysexits.h: nothing is to be mended, but not now.
TRY_AGAIN_STATUS = 75
# A disk or a quota that is full, a file that may grow no more, a terminal that is gone.
UNWRITABLE = (ENOSPC, EDQUOT, EFBIG, EIO)
# C0 and DEL have pictures in Unicode, C1 has none.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def called(program: str) -> str:
    """How one of our programs is called in the way in which this one was.

    As a console script, specedge-edge, or else as python -m runtime.edge.
    """
    if PurePath(sys.argv[0]).name.startswith("specedge-"):
        return program.replace("runtime.", "specedge-")
    return f"python -m {program}"


def inert(text: str) -> str:
    """The text with everything visible that a terminal would obey, but for tab and newline."""
    return text.translate(_VISIBLE)


def fail(program: str, error: object) -> int:
    """Say on standard error, in one line, what has to be mended; the exit status for it.

    An output that nobody reads any more is not to be mended, but for `run`.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    sentence = inert(str(error)).replace("\n", "\N{SYMBOL FOR NEWLINE}")
    print(f"{called(program).removeprefix('python -m ')}: {sentence}", file=sys.stderr)
    return 2


class Terminated(SystemExit):
    """SIGTERM came.

    A SystemExit, as asyncio swallows others where they are raised within a transport's write.
    """


def end_on_sigterm() -> None:
    """From now on SIGTERM raises Terminated: as process 1 a program would not hear it otherwise."""

    def on_signal(number: int, frame: object) -> None:
        raise Terminated

    signal(SIGTERM, on_signal)


@contextmanager
def importing(terminated: int = 128 + SIGTERM) -> Iterator[None]:
    """Import what a program needs until its end; Ctrl-C or SIGTERM ends it at once.

    As exceptions either could be caught within a module: torch and numpy try one import after
    another, and the program would start after all. `terminated` is the exit status after SIGTERM.
    """
    statuses = {SIGINT: 128 + SIGINT, SIGTERM: terminated}
    heard = [number for number in statuses if getsignal(number) is not SIG_IGN]
    before = {
        number: signal(number, lambda one, _: os._exit(statuses[Signals(one)])) for number in heard
    }
    # What is imported stays: to look through it again and again would be a tenth of the start.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for number, handler in before.items():
            signal(number, handler)


def leave(status: int) -> NoReturn:
    """End the program without waiting for its threads, nor for the interpreter to be taken down."""
    for output in (sys.stdout, sys.stderr):
        if output is not None:
            output.flush()
    os._exit(status)


def run(program: str, main: Callable[[], int]) -> int:
    """Exit status of a program in a terminal, whoever interrupts it or stops reading from it.

    What an output's encoding cannot say becomes "?"; input that is no text becomes surrogates,
    which nobody takes for text. An input that was closed has come to its end.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - until the process ends
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        try:
            return main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + SIGINT
    except Terminated:
        return 128 + SIGTERM
    except BrokenPipeError:
        _drop(sys.stdout, sys.stderr)
        return BROKEN_PIPE_STATUS
    except OSError as error:
        if error.errno in (EMFILE, ENFILE):
            return fail(program, f"{error.strerror}: raise `ulimit -n`")
        if error.errno not in UNWRITABLE:
            raise
        _drop(sys.stdout)
        return fail(program, f"the output cannot be written: {error.strerror}")


def _drop(*outputs: TextIO | None) -> None:
    """Let what is still to be written vanish; at its end the interpreter would complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in outputs:
        if output is not None:
            os.dup2(nowhere, output.fileno())
