"""Many small arrays in one buffer, so that one copy takes all of them to the device or back.

Knows names, types and shapes; it refuses to know what the arrays mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Triton compiles a kernel anew for pointers of another alignment.
ALIGN_BYTES = 16
NUMPY = {
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


def upload(here: Tensor, there: Tensor) -> None:
    """Send a buffer of the host to the device; nobody waits for it.

    All that a step sends to its device goes through here. On a CPU the two are one.
    """
    if there is not here:
        there.copy_(here, non_blocking=True)


class Arriving:
    """Columns on their way from the device to the host, of any types and shapes.

    They are joined on a GPU, so that one copy brings them.
    """

    def __init__(self, columns: tuple[Tensor, ...]):
        self._columns, self._arrival = columns, None
        device = columns[0].device
        if device.type == "cuda":
            there = joined(columns)
            here = torch.empty(len(there), dtype=torch.uint8, pin_memory=True)
            here.copy_(there, non_blocking=True)
            self._columns = parts(here, columns)
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(device))

    @property
    def is_there(self) -> bool:
        """Whether `wait` would not wait. What has failed is there: `wait` tells how."""
        try:
            return self._arrival is None or self._arrival.query()
        except RuntimeError:
            return True

    def wait(self) -> None:
        """Until it is there. Raises what the device has failed with until then."""
        if self._arrival is not None:
            self._arrival.synchronize()

    def columns(self) -> tuple[Tensor, ...]:
        """Those of the host, once they are there."""
        return self._columns


def download(*columns: Tensor) -> Arriving:
    """Send columns to the host; nobody waits for them, nor for what is queued after them.

    Wider numbers come before narrower ones, as they share a buffer in which they must be aligned.

    All that a step brings back from its device goes through here.
    """
    return Arriving(columns)


def joined(columns: Sequence[Tensor]) -> Tensor:
    """The bytes of columns, one behind the other."""
    return torch.cat([column.contiguous().view(-1).view(torch.uint8) for column in columns])


def parts(buffer: Tensor, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `joined` has joined, in memory of its own."""
    ends = [*accumulate([column.nbytes for column in columns], initial=0)]
    return tuple(
        buffer[first:last].view(column.dtype).view(column.shape)
        for column, (first, last) in zip(columns, pairwise(ends), strict=True)
    )


@dataclass(frozen=True)
class Place:
    """Where one array lies in the buffer."""

    first: int  # byte
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


class Layout:
    """Where each array lies in a buffer of bytes; by name its type and shape."""

    def __init__(self, **arrays: tuple[torch.dtype, tuple[int, ...]]):
        self.n_bytes = 0
        self._places: dict[str, Place] = {}
        for name, (dtype, shape) in arrays.items():
            strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
            self._places[name] = Place(self.n_bytes, dtype, shape, strides)
            end = self.n_bytes + prod(shape) * dtype.itemsize
            self.n_bytes = -(-end // ALIGN_BYTES) * ALIGN_BYTES

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The arrays of a buffer [n_bytes] u8, sharing its memory."""
        as_type = {p.dtype: buffer.view(p.dtype) for p in self._places.values()}
        begin = buffer.storage_offset()
        return {
            name: as_type[p.dtype].as_strided(
                p.shape, p.strides, (begin + p.first) // p.dtype.itemsize
            )
            for name, p in self._places.items()
        }

    def arrays(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """The same of a buffer of the host."""
        return {
            name: np.ndarray(p.shape, NUMPY[p.dtype], buffer, p.first)
            for name, p in self._places.items()
        }


class Content(Protocol):
    """Some arrays of a step, and what writes them."""

    @property
    def layout(self) -> Layout: ...

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write all of them."""
        ...


class Parcel:
    """What a step sends to its device: contents side by side, in one buffer and by one upload.

    They are written at once; what is written to `arrays` later goes along if it is before `send`.

    arrays  of each content on the host
    bytes   of each content on the device, whose values come with what is sent
    """

    def __init__(self, device: torch.device, contents: Mapping[str, Content]):
        layouts = {name: content.layout for name, content in contents.items()}
        ends = [*accumulate([layout.n_bytes for layout in layouts.values()], initial=0)]
        on_cpu = device.type == "cpu"
        # pinned for a GPU: torch gives its memory to no one else before a copy of it has ended
        self._here = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=not on_cpu)
        self._there = (
            self._here if on_cpu else torch.empty(ends[-1], dtype=torch.uint8, device=device)
        )
        self._layouts, raw = layouts, self._here.numpy()
        self._tensors: dict[str, dict[str, Tensor]] = {}
        places = dict(zip(layouts, pairwise(ends), strict=True))
        self.bytes = {name: self._there[first:last] for name, (first, last) in places.items()}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        for name, content in contents.items():
            first, last = places[name]
            self.arrays[name] = layouts[name].arrays(raw[first:last])
            content.fill(self.arrays[name])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A content on the device."""
        if name not in self._tensors:
            self._tensors[name] = self._layouts[name].views(self.bytes[name])
        return self._tensors[name]

    def send(self) -> None:
        """Send it, and nobody waits. It may be sent again."""
        upload(self._here, self._there)
