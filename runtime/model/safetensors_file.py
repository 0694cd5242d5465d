"""Safetensors files: what their header says of each tensor, and the tensors, read when asked for.

The format: huggingface.co/docs/safetensors, eight bytes with the header's length, the header in
JSON, and the tensors' bytes, one after the other without a gap.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.model.config import ModelError
from runtime.model.file_bytes import Version, read_bytes, version_of
from runtime.model.foreign import described_bytes

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file; `dtype` as the format spells it."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    version: Version

    def read(self) -> Tensor:
        """Raises ModelError where the file has changed, or for a type that torch lacks."""
        return self.read_rows(0, self.shape[0]) if self.shape else self._read(self.offset, ())

    def read_rows(self, first: int, last: int) -> Tensor:
        """Rows first .. last - 1 of one with dimensions."""
        row_bytes = self.n_bytes // max(self.shape[0], 1)
        return self._read(self.offset + first * row_bytes, (last - first, *self.shape[1:]))

    def _read(self, offset: int, shape: tuple[int, ...]) -> Tensor:
        if self.dtype not in DTYPES:
            raise ModelError(f"tensor {self.name} is stored as {self.dtype}, which is not read")
        dtype = DTYPES[self.dtype]
        n_bytes = math.prod(shape) * dtype.itemsize
        if not n_bytes:
            return torch.empty(shape, dtype=dtype)
        return read_bytes(self.path, offset, n_bytes, self.version).view(dtype).view(shape)


def tensors_of(path: Path) -> dict[str, FileTensor]:
    """The tensors of a safetensors file, unread: each lies in it, in bytes of its own.

    Raises ModelError.
    """
    try:
        version = version_of(path)
        return {tensor.name: tensor for tensor in _in_order(path, version)}
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = described_bytes(path) or error
        raise ModelError(f"{path} is not a safetensors file: {reason}") from None


def _in_order(path: Path, version: Version) -> list[FileTensor]:
    size, *_ = version
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise ValueError(f"its header of {length} bytes does not fit into {size} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    start = _LENGTH_BYTES + length
    tensors = [_tensor(path, version, start, *item) for item in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise ValueError(f"tensor {tensor.name} does not begin where the one before it ends")
        end += tensor.n_bytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end} of {size}")
    return tensors


def _tensor(path: Path, version: Version, start: int, name: str, told: Any) -> FileTensor:
    try:
        dtype, shape, (first, last) = told["dtype"], tuple(told["shape"]), told["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its header does not say where tensor {name} lies") from None
    numbers = (*shape, first, last)
    whole = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not whole or not isinstance(dtype, str):
        raise ValueError(f"the header of tensor {name} has sizes that are none")
    n_bytes = last - first
    if n_bytes < 0 or (dtype in DTYPES and n_bytes != math.prod(shape) * DTYPES[dtype].itemsize):
        raise ValueError(f"tensor {name}, {dtype} {list(shape)}, has {n_bytes} bytes")
    return FileTensor(path, name, dtype, shape, start + first, n_bytes, version)
