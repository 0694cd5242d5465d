"""What is no regular file is not read: it may never end, or never begin."""

import errno
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raises OSError for a pipe, which would be waited for, or a device, which may have no end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no file")
