"""The paged KV cache: one tensor for all layers of one shape, and the list of its free pages.

Knows pages, not whose they are: a request keeps the ids it was given and hands them back.
"""

import math
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from runtime.model import page_copy
from runtime.model.config import KVShape
from runtime.model.page_copy import PageCopy
from specedge_kernels import compact_kv

KeysValues = tuple[Tensor, Tensor]  # of one layer


class OutOfPages(Exception):
    """More pages were asked for than are free. Nothing was allocated."""


@dataclass(frozen=True)
class KeptPath:
    """The tree nodes of one request that stay in the cache, as a chain after its prefix."""

    pages: Sequence[int]
    prefix_len: int  # tokens before the tree
    path: Sequence[int]  # node indices, increasing


def bytes_per_token(shapes: Iterable[KVShape], dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return sum(shape.n_numbers for shape in shapes) * dtype.itemsize


class PagedKV:
    """Keys and values of n_pages pages of page_size tokens, for layers of any shapes.

    layers  of each layer its keys [P, S, Hk, D] and values [P, S, Hk, Dv]
    pools   the memory behind them, all layers of one shape together: [L, 2, P, S, Hk, D]. Where
            keys and values differ in width they lie side by side, and the 2 are equal halves of
            both: what is moved by page and token need not know where the values begin.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        if n_pages < 1 or page_size < 1:
            raise ValueError(
                f"a KV cache needs at least one page of one token, got {n_pages} of {page_size}"
            )
        self.n_pages, self.page_size = n_pages, page_size
        self.shapes = tuple(shapes)
        own: dict[KVShape, Iterator[KeysValues]] = {}
        pools = []
        for shape, n_layers in Counter(self.shapes).items():
            pool, layers = _pool(shape, (n_layers, n_pages, page_size), dtype, torch.device(device))
            pools.append(pool)
            own[shape] = iter(layers)
        self.pools: tuple[Tensor, ...] = tuple(pools)
        self.layers: tuple[KeysValues, ...] = tuple(next(own[shape]) for shape in self.shapes)
        self.device = self.pools[0].device
        self._free = list(reversed(range(n_pages)))
        self._is_free = [True] * n_pages

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def bytes_per_page(self) -> int:
        return sum(pool.nbytes for pool in self.pools) // self.n_pages

    def pages_for(self, n_tokens: int) -> int:
        """Pages that n_tokens tokens need."""
        return -(-n_tokens // self.page_size)

    def allocate(self, n: int) -> list[int]:
        """n pages, the most recently freed first. Raises OutOfPages, and then takes none."""
        if n < 0:
            raise ValueError(f"the number of pages to allocate is {n}; expected at least 0")
        if n > len(self._free):
            raise OutOfPages(f"{n} pages asked for, {len(self._free)} of {self.n_pages} are free")
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._is_free[page] = False
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back. A page that is not allocated is our own mistake: an assertion."""
        for page in pages:
            assert 0 <= page < self.n_pages, f"page {page} freed, the cache has {self.n_pages}"
            assert not self._is_free[page], f"page {page} freed twice"
            self._is_free[page] = True
            self._free.append(page)

    def check(self, held: Iterable[int]) -> None:
        """Recount: every page is either free or in `held`, exactly once. Asserts it."""
        counts = Counter(held)
        counts.update(self._free)
        wrong = {page: n for page, n in counts.items() if n != 1 or not 0 <= page < self.n_pages}
        assert not wrong, f"pages counted more than once or unknown: {wrong}"
        missing = set(range(self.n_pages)) - set(counts)
        assert not missing, f"pages neither free nor held: {sorted(missing)}"

    def copy_out(self, page: int) -> PageCopy:
        """What is in a page, in host memory; nobody waits for a GPU."""
        return page_copy.take(self.pools, page)

    def copy_in(self, copy: PageCopy, page: int) -> None:
        """Put into a page what was in another; nobody waits for a GPU."""
        page_copy.put(copy, self.pools, page)

    def compact(self, kept: Sequence[KeptPath]) -> None:
        """Move each request's kept nodes to the places right after its prefix, in all layers.

        Raises ValueError for a path that is not increasing or lies beyond the request's pages.
        """
        moved = [request for request in kept if list(request.path) != [*range(len(request.path))]]
        for request in moved:
            self._check_path(request)
        if not moved:
            return
        lengths = [len(request.path) for request in moved]
        path = np.zeros((len(moved), max(lengths)), dtype=np.int32)
        for row, request in enumerate(moved):
            path[row, : lengths[row]] = request.path
        device = self.device
        self.compact_verified(
            torch.from_numpy(page_table([request.pages for request in moved])).to(device),
            torch.tensor([r.prefix_len for r in moved], dtype=torch.int32, device=device),
            torch.from_numpy(path).to(device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        )

    def compact_verified(
        self, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
    ) -> None:
        """`compact` by paths that may still be on the device, one launch for each pool.

        page_table [B, M] i32, prefix_lens [B] i32, path [B, A] i32, accepted_lens [B] i32.
        """
        for pool in self.pools:
            compact_kv(pool, page_table, prefix_lens, path, accepted_lens)

    def _check_path(self, request: KeptPath) -> None:
        path = list(request.path)
        if path[0] < 0 or any(a >= b for a, b in pairwise(path)):
            raise ValueError(f"a kept path must be increasing node indices, got {path}")
        capacity = len(request.pages) * self.page_size
        if request.prefix_len < 0 or request.prefix_len + path[-1] >= capacity:
            raise ValueError(
                f"node {path[-1]} after a prefix of {request.prefix_len} tokens lies outside "
                f"{len(request.pages)} pages of {self.page_size} tokens"
            )


def _pool(
    shape: KVShape, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, list[KeysValues]]:
    """The memory of layers of one shape; sizes: of them, of pages, and of tokens in a page."""
    n_heads, key_width, value_width = shape
    if key_width == value_width:
        n_layers, *rest = sizes
        pool = _zeros((n_layers, 2, *rest, n_heads, key_width), dtype, device)
        return pool, [(keys, values) for keys, values in pool]
    both = _zeros((*sizes, n_heads, key_width + value_width), dtype, device)
    layers = [(layer[..., :key_width], layer[..., key_width:]) for layer in both]
    return both.unflatten(-1, (2, -1)).movedim(-2, 1), layers


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in memory that is taken only where it is written to.

    A pool is sized for the busiest hour, and to fill it would take longer than to load a model.
    """
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    memory = mmap.mmap(
        -1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(tuple(shape))


def page_table(pages: Sequence[Sequence[int]]) -> np.ndarray:
    """Requests' page ids as a table [B, M] i32; rows are filled up with page 0, never read."""
    table = np.zeros((len(pages), max(map(len, pages), default=0)), dtype=np.int32)
    for row, ids in enumerate(pages):
        table[row, : len(ids)] = ids
    return table
