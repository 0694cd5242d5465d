"""Random batches for the kernel tests: trees of every shape over a shuffled, poisoned cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specedge_kernels import reference

SHAPES = ("chain", "star", "binary", "caterpillar", "random")


def parents_of(shape: str, n: int, generator: torch.Generator) -> list[int]:
    """Parents of one tree of n nodes, node 0 the root."""
    draws = torch.rand(n, generator=generator).tolist()
    rules = {
        "chain": lambda j: j - 1,
        "star": lambda j: 0,
        "binary": lambda j: (j - 1) // 2,
        "caterpillar": lambda j: max(0, j - 1 - j % 2),
        "random": lambda j: int(draws[j] * j),
    }
    return [-1 if j == 0 else rules[shape](j) for j in range(n)]


@dataclass(frozen=True)
class Batch:
    """The tables of a batch: `cached[b]` of request b's nodes are not queried."""

    page_table: Tensor
    prefix_lens: Tensor
    n_nodes: Tensor
    offsets: Tensor
    ancestors: Tensor
    depth: Tensor
    n_pages: int
    used: Tensor  # [P, S] bool: slots that hold KV of some request

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (
            self.page_table,
            self.prefix_lens,
            self.n_nodes,
            self.offsets,
            self.ancestors,
            self.depth,
        )


def make_batch(
    parents: list[list[int]],
    prefixes: list[int],
    page_size: int,
    generator: torch.Generator,
    cached: list[int] | None = None,
    words: int | None = None,
) -> Batch:
    """Trees over shuffled pages; page ids beyond those a request needs are invalid on purpose."""
    cached = cached or [0] * len(parents)
    words = words or max(1, -(-max((len(p) for p in parents), default=1) // 64))
    sizes = [len(p) for p in parents]
    all_offsets = offsets_of(sizes)
    flat = int32([p for tree in parents for p in tree])
    ancestors, depth = reference.build_tree(flat, all_offsets, words)
    rows = [
        row
        for b, n in enumerate(sizes)
        for row in range(int(all_offsets[b]) + cached[b], int(all_offsets[b]) + n)
    ]
    needs = [-(-(prefix + n) // page_size) for prefix, n in zip(prefixes, sizes, strict=True)]
    n_pages = sum(needs) + 3
    shuffled = torch.randperm(n_pages, generator=generator).tolist()
    table = torch.full((len(parents), max(needs, default=0) + 1), -7, dtype=torch.int32)
    used = torch.zeros(n_pages, page_size, dtype=torch.bool)
    for b, need in enumerate(needs):
        pages = [shuffled.pop() for _ in range(need)]
        table[b, :need] = int32(pages)
        for position in range(prefixes[b] + sizes[b]):
            used[pages[position // page_size], position % page_size] = True
    return Batch(
        page_table=table,
        prefix_lens=int32(prefixes),
        n_nodes=int32(sizes),
        offsets=offsets_of([n - c for n, c in zip(sizes, cached, strict=True)]),
        ancestors=ancestors[rows],
        depth=depth[rows],
        n_pages=n_pages,
        used=used,
    )


def make_caches(
    batch: Batch,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: str = "NHD",
    value_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Random k and v caches [P, S, Hk, D], NaN wherever no request has written."""
    n_pages, page_size = batch.used.shape
    caches = []
    for width in (dim, value_dim or dim):
        cache = torch.randn(n_pages, page_size, heads, width, generator=generator)
        cache[~batch.used] = float("nan")
        cache = cache.to(dtype)
        if layout == "HND":
            cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
        caches.append(cache)
    return caches[0], caches[1]


def linearised(
    batch: Batch,
    caches: tuple[Tensor, Tensor],
    b: int,
    node: int,
    generator: torch.Generator,
    page_size: int,
) -> tuple[Batch, list[Tensor]]:
    """The path of one query node as plain decoding would hold it: a prefix and one last token."""
    prefix = int(batch.prefix_lens[b])
    row = int(batch.offsets[b + 1]) - int(batch.n_nodes[b]) + node
    path = reference.visible_nodes(batch.ancestors[row], int(batch.depth[row]), node)
    positions = torch.tensor([*range(prefix), *(prefix + j for j in path)])
    alone = make_batch([[-1]], [len(positions) - 1], page_size, generator)
    old_size = batch.used.shape[1]
    pages = batch.page_table[b][positions // old_size].long()
    to = torch.arange(len(positions))
    new_pages = alone.page_table[0][to // page_size].long()
    moved = []
    for cache in caches:
        shape = (*alone.used.shape, *cache.shape[2:])
        new = torch.full(shape, float("nan")).to(cache.dtype)
        new[new_pages, to % page_size] = cache[pages, positions % old_size]
        moved.append(new)
    return alone, moved


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def offsets_of(sizes: list[int]) -> Tensor:
    return torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D] turned by the tables' rows cos, sin [N, 1, D] of its positions."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def masks_of(rows: int, vocabulary: int, share: float, generator: torch.Generator) -> tuple:
    """Random masks that allow this share of the tokens, the first none, and one for each row of
    logits: some have none, some share one. Bits beyond the vocabulary are random."""
    count, words = max(rows // 2, 1), -(-vocabulary // 32)
    allowed = torch.rand(count, words * 32, generator=generator) < share
    allowed[0, :vocabulary] = False
    bits = allowed.view(count, words, 32).long() << torch.arange(32)
    chosen = torch.randint(-1, count, (rows,), generator=generator)
    chosen[: count + 1] = torch.arange(-1, count)[:rows]
    return bits.sum(-1).to(torch.int32), chosen.to(torch.int32)
