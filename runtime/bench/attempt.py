"""An end without a traceback for measurements that cannot be made."""

from collections.abc import Callable
from signal import SIGINT

from runtime.terminal import fail


def attempt(program: str, measure: Callable[[], int | None]) -> int:
    """The exit status of `measure`; 2 and a sentence if options, files, models or ports are bad.

    130, without a word, when it is interrupted.
    """
    try:
        return measure() or 0
    except KeyboardInterrupt:
        return 128 + SIGINT
    except (ValueError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError) and error.filename:
            sentence = f"cannot use {error.filename}: {error.strerror}"
        return fail(program, sentence)
