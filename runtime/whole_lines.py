"""A file that grows line by line and never keeps a half of one, whatever the disk says."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path


class WholeLines:
    """Appends to a file what is there at once for every reader, and after this process is killed.

    Raises OSError.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self._file = FileIO(path, mode)
        self._size = os.fstat(self._file.fileno()).st_size

    def append(self, line: str) -> None:
        """Add a line; where it does not fit, nothing of it stays. Raises OSError."""
        data = f"{line}\n".encode()
        size = self._size + len(data)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            with suppress(OSError):  # a device has no size
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise
        self._size = size

    def close(self) -> None:
        """End; nothing is left to be written."""
        self._file.close()
