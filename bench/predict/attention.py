"""Tree attention without data: ours, and the schedules of other engines, with what they move."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
from torch import Tensor

from bench.kernels.attention import PAGE_TOKENS, Batch, Shape
from bench.kernels.schedules import per_query_head, sixteen_rows
from bench.predict import flashinfer
from bench.predict.model import Stream
from bench.predict.work import BF16, DENSE, EXPERTS, F32, I64, Model, Work, empty, in_triton
from specedge_kernels.gpu import plan
from specedge_kernels.gpu.tree_attention import tree_attention
from tests.gpu.launches import Launch


def works() -> Iterator[Work]:
    for model, sizes in (
        (DENSE, [(1, 32), (16, 12), (16, 25), (16, 32), (16, 64), (64, 32)]),
        (EXPERTS, [(1, 16), (16, 8), (16, 16), (16, 32), (64, 16)]),
    ):
        for batch, nodes in sizes:
            yield from attend(model, batch, 4096, nodes)
    yield from attend(DENSE, 1, 32768, 32)
    yield ours(attention_shape(DENSE, 16, 4096, 32, torch.float8_e4m3fn))
    yield ours(attention_shape(DENSE, 16, 4096, 32), batch_invariant=True)
    sunk = Shape("gpt-oss-20b", 64, 8, 64, BF16, BF16, 16, 4096, 16)
    yield ours(sunk)
    yield ours(sunk, sinks=True)
    yield latent(16, 4096, 16)


def attention_shape(
    model: Model, batch: int, prefix: int, nodes: int, cached: torch.dtype = BF16
) -> Shape:
    heads = (model.query_heads, model.heads, model.dim)
    return Shape(model.name, *heads, BF16, cached, batch, prefix, nodes)


def attend(model: Model, batch: int, prefix: int, nodes: int) -> Iterator[Work]:
    shape = attention_shape(model, batch, prefix, nodes)
    yield ours(shape)
    sizes = (str(shape), shape.n_bytes, shape.flops)
    for way, schedule in (("vLLM-shaped", sixteen_rows), ("SGLang-shaped", per_query_head)):
        call, stream = partial(on_nothing, schedule, shape), partial(one_tile_a_program, shape)
        yield Work("tree_attention", way, *sizes, partial(in_triton, call, stream))
    if flashinfer.is_here():
        yield Work("tree_attention", "FlashInfer", *sizes, partial(flashinfer.launches, shape))


def on_nothing(schedule: Callable[[Batch], Tensor], shape: Shape) -> Tensor:
    return schedule(empty_batch(shape))


def ours(shape: Shape, batch_invariant: bool = False, sinks: bool = False) -> Work:
    way = "ours" + ", invariant" * batch_invariant + ", sinks" * sinks

    def call() -> object:
        batch = empty_batch(shape)
        arguments = (batch.q, batch.k_cache, batch.v_cache, *batch.tables)
        sunk = empty(shape.query_heads, dtype=F32) if sinks else None
        call = partial(tree_attention, scale=batch.scale, batch_invariant=batch_invariant)
        return call(*arguments, sinks=sunk)

    sizes = (str(shape), shape.n_bytes, shape.flops)
    token_bytes = 2 * shape.dim * shape.cached.itemsize
    launches = partial(
        in_triton, call, partial(planned, shape, shape.n_bytes, token_bytes, shape.dim)
    )
    return Work("tree_attention", way, *sizes, launches)


def latent(batch: int, prefix: int, nodes: int) -> Work:
    """DeepSeek-V2-Lite's, absorbed: a key of 576 numbers, of which the first 512 are the value."""
    heads, keys, values = 16, 576, 512
    shape = Shape("DeepSeek-V2-Lite", heads, 1, keys, BF16, BF16, batch, prefix, nodes)

    def call() -> object:
        made = empty_batch(shape)
        caches = (made.k_cache, made.k_cache[..., :values])
        return tree_attention(made.q, *caches, *made.tables, scale=made.scale)

    token_bytes, rows = keys * BF16.itemsize, batch * nodes * heads
    n_bytes = batch * (prefix + nodes) * token_bytes + rows * (keys + values) * BF16.itemsize
    flops = 2 * rows * (prefix + nodes) * (keys + values)
    launches = partial(in_triton, call, partial(planned, shape, n_bytes, token_bytes, values))
    return Work("tree_attention", "ours", f"{shape}, latent", n_bytes, flops, launches)


def empty_batch(shape: Shape) -> Batch:
    """Tensors without data, of trees of at most 64 nodes."""
    batch, rows = shape.batch, shape.batch * shape.nodes
    width = triton.cdiv(shape.prefix + shape.nodes, PAGE_TOKENS)
    cache = (batch * width, PAGE_TOKENS, shape.heads, shape.dim)
    k_cache, v_cache = (empty(*cache, dtype=shape.cached) for _ in range(2))
    trees = (empty(batch + 1), empty(rows, 1, dtype=I64), empty(rows))
    tables = (empty(batch, width), empty(batch), empty(batch), *trees)
    return Batch(empty(rows, shape.query_heads, shape.dim, dtype=BF16), k_cache, v_cache, tables)


def planned(
    shape: Shape, n_bytes: float, token_bytes: int, value_dim: int, launch: Launch
) -> Stream | None:
    """Row tiles each read the keys of their split for themselves; token_bytes: of a head."""
    group = shape.query_heads // shape.heads
    rows, keys = shape.nodes * group, launch.constant("BLOCK_KEYS")
    invariant = bool(launch.arguments["INVARIANT"])
    splits = n_splits(shape.prefix, shape.nodes, rows, keys, invariant)
    # Float32, written by the first launch and read by the second.
    vectors = splits * shape.batch * shape.nodes * shape.query_heads
    partials = vectors * (value_dim + 1) * 4 if splits > 1 else 0
    if launch.kernel.__name__ == "merge_splits_kernel":
        return Stream(0, 0, launch.programs, splits, partials) if partials else None
    tiles = triton.cdiv(rows, launch.constant("BLOCK_ROWS"))
    items = shape.batch * shape.heads * tiles * splits
    # Around the tree at least one tile more; where bits follow the path alone, one for each node.
    around = (shape.nodes if invariant else tiles) * keys
    through = shape.batch * shape.heads * (tiles * shape.prefix + around) * token_bytes
    return Stream(n_bytes, through, items, partial_bytes=partials)


def n_splits(prefix: int, nodes: int, rows: int, keys: int, invariant: bool) -> int:
    """Of a request's prefix without a window, as plan.split_prefix cuts it; rows: query vectors."""
    if invariant:
        return max(-(-(prefix + nodes) // int(plan.INVARIANT_SPLIT_TOKENS.value)), 1)
    least = max(int(plan.MIN_SPLIT_TOKENS.value), int(plan.SPLIT_TOKENS_PER_ROW.value) * rows)
    wanted = min(max(prefix // least, 1), int(plan.MAX_SPLITS.value))
    size = max(-(-prefix // (wanted * keys)), 1) * keys
    return max(-(-prefix // size), 1)


def one_tile_a_program(shape: Shape, launch: Launch) -> Stream:
    """Every program reads all keys of its head for itself."""
    token_bytes = 2 * shape.dim * shape.cached.itemsize
    through = launch.programs * (shape.prefix + shape.nodes) * token_bytes
    return Stream(shape.n_bytes, through, launch.programs)
