"""The header of a GGUF file: its metadata, and where its tensors lie.

Layout: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian. The gguf package
reads the same, but takes seconds for a vocabulary; it still decodes the tensors' blocks. Knows
bytes only, not what a key or a tensor means.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.model.regular_file import check_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
ALIGNMENT, DEFAULT_ALIGNMENT = "general.alignment", 32  # of the tensors' data, in bytes
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")  # of a string, which follows


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place: shape slowest dimension first, offset from the start of the data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Everything before the tensors' data."""

    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_start: int


def read_header(path: Path) -> Header:
    """Raises ValueError for a file that is no GGUF file of a known version, or is cut short."""
    check_regular(path)
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        reader = _Reader(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), start=len(MAGIC))
        version = reader.scalar("I")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise ValueError("its numbers are big-endian, which is not supported")
            raise ValueError(f"version {version} is not supported; expected 2 or 3")
        n_tensors, n_fields = reader.scalar("Q"), reader.scalar("Q")
        metadata = {}
        for _ in range(n_fields):
            key = reader.string()
            if key in metadata:
                raise ValueError(f"field {key} is there twice")
            metadata[key] = reader.value(reader.scalar("I"))
        tensors = tuple(reader.tensor() for _ in range(n_tensors))
        if len({info.name for info in tensors}) < n_tensors:
            raise ValueError("two tensors have the same name")
        alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}; expected a power of two of bytes")
        return Header(metadata, tensors, -(-reader.place // alignment) * alignment)


class _Reader:
    """Reads a mapped file from `place` on."""

    def __init__(self, data: mmap.mmap, start: int):
        self._data, self.place = data, start

    def scalar(self, code: str) -> Any:
        return self._numbers(1, code)[0]

    def string(self) -> str:
        return self._strings(1)[0]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a field has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def tensor(self) -> TensorInfo:
        name, n_dimensions = self.string(), self.scalar("I")
        if n_dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {n_dimensions} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(n_dimensions))[::-1]
        return TensorInfo(name, shape, self.scalar("I"), self.scalar("Q"))

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind in _SCALARS:
            return list(self._numbers(count, _SCALARS[kind]))
        if kind != _STRING:
            raise ValueError(f"an array has the unknown type {kind}")
        return self._strings(count)

    def _numbers(self, count: int, code: str) -> tuple[Any, ...]:
        n_bytes = count * struct.calcsize(f"<{code}")
        self._expect_left(n_bytes)
        values = struct.unpack_from(f"<{count}{code}", self._data, self.place)
        self.place += n_bytes
        return values

    def _strings(self, count: int) -> list[str]:
        # A vocabulary has a hundred thousand: this loop is what it takes to read a header.
        data, unpack, size, end = self._data, _LENGTH.unpack_from, _LENGTH.size, self.place
        total = len(data)
        self._expect_left(count * size)
        texts = list[str]()
        for _ in range(count):
            start = end + size
            end = start + (unpack(data, end)[0] if start <= total else 0)
            if end > total:
                raise _cut_short(end - self.place, total - self.place)
            texts.append(data[start:end].decode("utf-8"))
        self.place = end
        return texts

    def _expect_left(self, count: int) -> None:
        left = len(self._data) - self.place
        if count > left:
            raise _cut_short(count, left)


def _cut_short(expected: int, left: int) -> ValueError:
    return ValueError(f"it is cut short: {expected} bytes expected, {left} are left")
