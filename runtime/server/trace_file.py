"""The file of --trace: it can be read while it grows, and on a full disk it ends."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from runtime.logs import fields
from runtime.server.schedule.step import Step
from runtime.whole_lines import WholeLines

log = logging.getLogger(__name__)


@contextmanager
def tracing(path: str) -> Iterator[Callable[[Step], None]]:
    """What writes each step that has ended to a file; to none where the path is empty. OSError."""
    if not path:
        yield lambda step: None
        return
    with closing(TraceFile(Path(path))) as file:
        yield file.step


class TraceFile:
    """Raises OSError if it cannot be made. When the disk is full it ends, and it is said once."""

    def __init__(self, path: Path) -> None:
        self._lines: WholeLines | None = WholeLines(path, "w")

    def step(self, step: Step) -> None:
        """Add the line of a step that has ended."""
        if self._lines is None:
            return
        try:
            self._lines.append(step.line())
        except OSError as error:
            log.warning("the trace ends here", extra=fields(reason=error.strerror))
            self.close()

    def close(self) -> None:
        """Write no more."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
