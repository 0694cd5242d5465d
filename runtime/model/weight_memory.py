"""Where packed weights lie on a CPU: one behind the other, on large pages.

Every step reads all of them, so what memory can give is what it takes. Knows no files.
"""

from dataclasses import replace

import torch
from torch import Tensor

from runtime.system import memory_on_large_pages
from specedge_kernels import QuantizedWeight

_LINE_BYTES = 64  # of a cache
_ROOM_BYTES = 64 << 20  # at a time; what is not used of it takes no memory


class WeightMemory:
    """Room for weights, which lives as long as any of them."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def moved(self, weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
        """The same numbers here."""
        if isinstance(weight, QuantizedWeight):
            return replace(weight, packed=self._copy(weight.packed))
        return self._copy(weight)

    def _copy(self, tensor: Tensor) -> Tensor:
        whole_lines = -(-tensor.nbytes // _LINE_BYTES) * _LINE_BYTES
        if whole_lines > len(self._rest):
            room = memory_on_large_pages(max(whole_lines, _ROOM_BYTES))
            self._rest = torch.frombuffer(room, dtype=torch.uint8)
        place, self._rest = self._rest[: tensor.nbytes], self._rest[whole_lines:]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
