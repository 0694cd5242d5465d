"""Tree attention at the shapes of real models, ours and every baseline on the same work."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from bench.kernels.baselines import Way, ways
from bench.kernels.case import TOLERANCES, Case, Work, far_from
from bench.kernels.trees import make_trees
from specedge_kernels import reference, tree_attention

PAGE_TOKENS = 16
CHECKED_ROWS = 8


@dataclass(frozen=True)
class Shape:
    """Every request has the same prefix and a random tree of the same size."""

    model: str
    query_heads: int
    heads: int
    dim: int
    dtype: torch.dtype
    cached: torch.dtype  # keys and values
    batch: int
    prefix: int
    nodes: int

    def __str__(self) -> str:
        dtypes = dict.fromkeys((self.dtype, self.cached))
        names = "/".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"{self.model} {names} B{self.batch} L{self.prefix} T{self.nodes}"

    @property
    def is_prompt(self) -> bool:
        """Without a prefix: then the nodes are a chain."""
        return self.prefix == 0

    @property
    def n_bytes(self) -> int:
        """Keys and values once, queries and outputs once."""
        tokens = self.batch * (self.prefix + self.nodes) * 2 * self.heads * self.cached.itemsize
        rows = self.batch * self.nodes * 2 * self.query_heads * self.dtype.itemsize
        return (tokens + rows) * self.dim

    @property
    def flops(self) -> int:
        pairs = self.nodes * (self.prefix + self.nodes)  # of a node and a key
        if self.is_prompt:
            pairs = self.nodes * (self.nodes + 1) // 2
        return 4 * self.batch * pairs * self.query_heads * self.dim


def qwen3_14b(batch: int, prefix: int, nodes: int, cached: torch.dtype = torch.bfloat16) -> Shape:
    return Shape("Qwen3-14B", 40, 8, 128, torch.bfloat16, cached, batch, prefix, nodes)


def smollm2(batch: int, prefix: int, nodes: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape("SmolLM2-135M", 9, 3, 64, dtype, dtype, batch, prefix, nodes)


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    if device.type == "cpu":
        some = [smollm2(1, 512, 16, dtype) for dtype in (torch.float32, torch.bfloat16)]
        if quick:
            return some[:1]
        prompt = smollm2(1, 0, 512, torch.float32)
        long = [smollm2(1, 2048, nodes, torch.float32) for nodes in (1, 16)]
        return [*some, smollm2(1, 512, 64), smollm2(4, 256, 16), *long, prompt]
    some = [qwen3_14b(1, 4096, 32), qwen3_14b(16, 4096, 32)]
    if quick:
        return some
    return [
        *some,
        qwen3_14b(1, 32768, 32),
        qwen3_14b(16, 4096, 12),
        qwen3_14b(16, 4096, 25),
        qwen3_14b(16, 4096, 64),
        qwen3_14b(64, 4096, 32),
        qwen3_14b(16, 4096, 32, torch.float8_e4m3fn),
        smollm2(1, 4096, 32),
        smollm2(16, 4096, 32),
        smollm2(64, 4096, 32),
    ]


@dataclass(frozen=True)
class Batch:
    """Arguments of `tree_attention`, pages shuffled."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    tables: tuple[Tensor, ...]  # page_table, prefix_lens, n_nodes, offsets, ancestors, depth

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5

    def run(self, **options: bool) -> Tensor:
        arguments = (self.q, self.k_cache, self.v_cache, *self.tables)
        return tree_attention(*arguments, scale=self.scale, **options)


def make_batch(shape: Shape, device: torch.device, seed: int) -> Batch:
    generator = torch.Generator(device).manual_seed(seed)
    width = -(-(shape.prefix + shape.nodes) // PAGE_TOKENS)
    pages = torch.randperm(shape.batch * width, generator=torch.manual_seed(seed))
    like = {"generator": generator, "device": device, "dtype": shape.dtype}
    cache = (2, shape.batch * width, PAGE_TOKENS, shape.heads, shape.dim)
    k_cache, v_cache = torch.randn(*cache, **like).to(shape.cached)
    q = torch.randn(shape.batch * shape.nodes, shape.query_heads, shape.dim, **like)
    trees = make_trees(shape.batch, shape.nodes, seed, shape.is_prompt)
    tables = (
        pages.view(shape.batch, width).int(),
        torch.full((shape.batch,), shape.prefix, dtype=torch.int32),
        torch.full((shape.batch,), shape.nodes, dtype=torch.int32),
        trees.offsets,
        trees.ancestors,
        trees.depth,
    )
    return Batch(q, k_cache, v_cache, tuple(table.to(device) for table in tables))


def some_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """A sample of row numbers [R] and what they should be [R, Hq, D], by the specification."""
    q, k_cache, v_cache = (t.cpu() for t in (batch.q, batch.k_cache, batch.v_cache))
    pages, prefix_lens, n_nodes, _, ancestors, depth = (table.cpu() for table in batch.tables)
    rows = torch.linspace(0, q.shape[0] - 1, CHECKED_ROWS).long()
    request, node = rows // int(n_nodes[0]), rows % int(n_nodes[0])
    # Each row as a request of one row: the last node of a tree that ends there.
    expected = reference.tree_attention(
        q[rows].double(),
        k_cache,
        v_cache,
        pages[request],
        prefix_lens[request],
        node + 1,
        torch.arange(CHECKED_ROWS + 1),
        ancestors[rows],
        depth[rows],
        scale=batch.scale,
    )
    return rows, expected


def cases(device: torch.device, quick: bool, optional: bool) -> Iterator[Case]:
    """Ours and the ways that must work, or those that may be missing or take long to compile."""
    for shape in shapes(device, quick):
        yield from (case for case in cases_of(shape, device) if case.optional == optional)


def cases_of(shape: Shape, device: torch.device) -> Iterator[Case]:
    # All ways of a shape share their inputs and what is expected of them.
    batch_of = cache(lambda seed: make_batch(shape, device, seed))
    expected = cache(lambda: some_rows(batch_of(0)))

    def case(way: Way) -> Case:
        def prepare(seed: int) -> Work:
            call = way.bind(batch_of(seed))
            return Work(call, lambda: check(call(), *expected(), TOLERANCES[shape.dtype]))

        sizes = (str(shape), shape.n_bytes, shape.flops)
        return Case("tree_attention", way.name, *sizes, prepare, way.optional)

    yield case(Way("ours", lambda batch: batch.run))
    if device.type == "cuda":
        yield case(Way("ours, invariant", lambda batch: partial(batch.run, batch_invariant=True)))
    # What we are compared with does not read float8 caches.
    if shape.cached == shape.dtype:
        yield from map(case, ways(device))
    batch_of.cache_clear()


def check(out: Tensor, rows: Tensor, expected: Tensor, tolerance: float) -> str:
    """`out` [N, Hq, D] against the sampled rows, and finite everywhere."""
    if not out.isfinite().all():
        return "some outputs are not finite"
    return far_from(expected, out[rows.to(out.device)], tolerance)
