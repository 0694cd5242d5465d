"""An end without a traceback for measurements that cannot be made."""

from collections.abc import Callable

from runtime.terminal import UNWRITABLE, fail, run


def attempt(program: str, measure: Callable[[], int | None]) -> int:
    """The exit status of `measure`; 2 and a sentence if options, files, models or ports are bad.

    Without a word 130 when it is interrupted, 141 when nobody reads what it prints.
    """

    def measured() -> int:
        try:
            return measure() or 0
        except BrokenPipeError:
            raise
        except ValueError as error:
            return fail(program, str(error))
        except OSError as error:
            if error.filename:
                return fail(program, f"cannot use {error.filename}: {error.strerror}")
            if error.errno in UNWRITABLE:
                raise
            return fail(program, str(error))

    return run(program, measured)
