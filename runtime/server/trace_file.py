"""The file of --trace: it can be read while it grows, and on a full disk it ends."""

import logging
from pathlib import Path

from runtime.logs import fields
from runtime.whole_lines import WholeLines

log = logging.getLogger(__name__)


class TraceFile:
    """Raises OSError if it cannot be made. When the disk is full it ends, and it is said once."""

    def __init__(self, path: Path) -> None:
        self._lines: WholeLines | None = WholeLines(path, "w")

    def write(self, line: str) -> None:
        """Add a line, of a step that has ended."""
        if self._lines is None:
            return
        try:
            self._lines.append(line)
        except OSError as error:
            log.warning("the trace ends here", extra=fields(reason=error.strerror))
            self.close()

    def close(self) -> None:
        """Write no more."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
