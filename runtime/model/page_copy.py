"""A page of the KV pool in host memory, and as bytes of a safetensors file.

Knows tensors and bytes; it refuses to know whose text they belong to, and where files lie.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PageCopy:
    """Keys and values of one page: of each pool [L, 2, S, Hk, D], in host memory.

    arrived  of a GPU: when they are there. What is queued behind the copy need not wait for it.
    """

    pools: tuple[Tensor, ...]
    arrived: torch.cuda.Event | None = None

    def to_bytes(self) -> bytes:
        """Itself as a safetensors file. Waits until it is there."""
        from safetensors.torch import save

        if self.arrived is not None:
            self.arrived.synchronize()
        return save({str(index): pool for index, pool in enumerate(self.pools)})

    @classmethod
    def from_bytes(cls, data: bytes, pinned: bool) -> "PageCopy":
        """What `to_bytes` gave; `pinned` where it goes to a GPU."""
        from safetensors.torch import load

        pools = load(data)
        tensors = tuple(pools[str(index)] for index in range(len(pools)))
        return cls(tuple(tensor.pin_memory() for tensor in tensors) if pinned else tensors)


def take(pools: tuple[Tensor, ...], page: int) -> PageCopy:
    """Copy one page of pools [L, 2, P, S, Hk, D] to host memory; nobody waits for a GPU."""
    if pools[0].device.type != "cuda":
        own = torch.contiguous_format  # where keys and values lie side by side they are strided
        return PageCopy(tuple(pool[:, :, page].clone(memory_format=own) for pool in pools))
    copies = []
    for pool in pools:
        there = pool[:, :, page]
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        copies.append(here.copy_(there, non_blocking=True))
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(pools[0].device))
    return PageCopy(tuple(copies), arrived)


def put(copy: PageCopy, pools: tuple[Tensor, ...], page: int) -> None:
    """Copy it into one page of pools; nobody waits for a GPU."""
    for pool, here in zip(pools, copy.pools, strict=True):
        pool[:, :, page].copy_(here, non_blocking=True)
