"""The header of a GGUF file: its metadata, and where its tensors lie.

Layout: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian. The gguf package
reads the same, but takes seconds for a vocabulary; it still decodes the tensors' blocks. Knows
bytes only, not what a key or a tensor means.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        reader = _Reader(file, size)
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
        return Header(metadata, tensors, -(-file.tell() // alignment) * alignment)


class _Reader:
    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size - file.tell()

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self._bytes(int.from_bytes(self._bytes(8), "little")).decode("utf-8")

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
            self._expect_left(count * struct.calcsize(f"<{_SCALARS[kind]}"))
            code = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack(code, self._bytes(struct.calcsize(code))))
        if kind != _STRING:
            raise ValueError(f"an array has the unknown type {kind}")
        return [self.string() for _ in range(count)]

    def _bytes(self, count: int) -> bytes:
        self._expect_left(count)
        self._left -= count
        return self._file.read(count)

    def _expect_left(self, count: int) -> None:
        if count > self._left:
            raise ValueError(f"it is cut short: {count} bytes expected, {self._left} are left")
