"""Parts of a model's file, each read into memory of its own.

A mapped file would be the model itself: who writes over it would change a model that runs, who
cuts it short would end the process, and its pages would count beside the weights made of them.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.model.config import ModelError
from runtime.model.regular_file import check_regular

Version = tuple[int, ...]


def version_of(path: Path) -> Version:
    """Size, place and time: half of one file and half of another would make a wrong model."""
    check_regular(path)
    status = path.stat()
    return status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns


def read_bytes(path: Path, offset: int, n_bytes: int, version: Version) -> Tensor:
    """uint8 [n_bytes]. Raises ModelError where the file is no more what it was."""
    try:
        data = np.fromfile(path, np.uint8, n_bytes, offset=offset)
        is_same = data.size == n_bytes and version_of(path) == version
    except OSError as error:
        raise ModelError(f"{path} cannot be read any more: {error.strerror}") from None
    if not is_same:
        raise ModelError(f"{path} was changed while it was read; try again")
    return torch.from_numpy(data)
