"""Many small arrays in one buffer, so that one copy takes all of them to the device or back.

Knows names, types and shapes; it refuses to know what the arrays mean.
"""

from dataclasses import dataclass
from math import prod

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


def upload(buffer: Tensor, to: "torch.device | Tensor") -> Tensor:
    """Send a host buffer to a device, or into a tensor there; nobody waits for it.

    All that a step sends to its device goes through here.
    """
    if isinstance(to, Tensor):
        return to.copy_(buffer, non_blocking=True)
    return buffer.to(to, non_blocking=True)


class Arriving:
    """Columns of a matrix on their way from the device to the host, each [B] or [B, M].

    They are joined on a GPU, so that one copy brings them; those of a CPU when somebody reads them.
    """

    def __init__(self, columns: tuple[Tensor, ...]):
        self._columns, self._arrival = columns, None
        if columns[0].device.type == "cuda":
            on_device = torch.column_stack(columns)
            host = torch.empty_like(on_device, device="cpu", pin_memory=True)
            host.copy_(on_device, non_blocking=True)
            self._columns = (host,)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

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

    def matrix(self) -> Tensor:
        """The columns side by side on the host, once they are there."""
        return torch.column_stack(self._columns)


def download(*columns: Tensor) -> Arriving:
    """Send a matrix to the host; nobody waits for it, nor for what is queued after it.

    All that a step brings back from its device goes through here.
    """
    return Arriving(columns)


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
        return {
            name: as_type[p.dtype].as_strided(p.shape, p.strides, p.first // p.dtype.itemsize)
            for name, p in self._places.items()
        }

    def host_buffer(self, device: torch.device) -> tuple[Tensor, dict[str, np.ndarray]]:
        """A new buffer to fill on the host, and its arrays, uninitialised.

        For a GPU it is pinned; torch gives its memory to no one else before a copy of it ended.
        """
        buffer = torch.empty(self.n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        raw = buffer.numpy()
        return buffer, {
            name: np.ndarray(p.shape, NUMPY[p.dtype], raw, p.first)
            for name, p in self._places.items()
        }
