"""Products with a weight on a GPU, where the sums of a row depend on K and on nothing else.

The inputs are cut into chunks at fixed places. A chunk is one accumulation of matrix instructions
from zero on, in increasing k; the chunks' sums are added in increasing order, in float32. Tiles
have one shape for any number of rows; those beyond the last are zero and are not stored: more rows
are more tiles. Where tiles alone would leave multiprocessors idle, each chunk is a work item of
its own and a second kernel adds them: the same sums in the same order, so no bit depends on it.
Weights are the left operand of the instructions, whose width is then that of the rows. Knows no
layers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.paged import float_of_e4m3
from specedge_kernels.gpu.sum_chunks import chunk_inputs, n_splits, sum_chunks
from specedge_kernels.gpu.tiles import architecture, converts_e4m3

SCALE_BLOCK = tl.constexpr(128)  # outputs and inputs of float8 weights that share a scale


@triton.jit(do_not_specialize=["rows", "chunks_per_item"])
def linear_kernel(
    x,  # [N, K]
    weight,  # [M, K]
    scales,  # [ceil(M / 128), ceil(K / 128)] f32; not read unless SCALED
    bias,  # [M]; not read unless BIAS
    out,  # [N, M]
    parts,  # [chunks, N, M] f32; written in place of out where each chunk is an item of its own
    rows,
    inputs,
    outputs,
    chunk,  # inputs of a chunk: a multiple of BLOCK_K
    chunks_per_item,  # all of them, or 1
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of BLOCK_K
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    NATIVE_E4M3: tl.constexpr,
    UPCAST: tl.constexpr,
):
    DOT: tl.constexpr = tl.float32 if UPCAST else x.dtype.element_ty
    # Tiles of rows are next to each other: they share weights in the L2.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    is_row, is_output = row < rows, m < outputs
    # Outputs beyond the last repeat it, and are not stored.
    x_at = x + row.to(tl.int64)[:, None] * inputs + k[None, :]
    w_at = weight + tl.minimum(m, outputs - 1).to(tl.int64)[:, None] * inputs + k[None, :]
    scale_at = scales + tl.program_id(1) * BLOCK_M // SCALE_BLOCK * tl.cdiv(inputs, SCALE_BLOCK)

    first = tl.program_id(2) * chunks_per_item * chunk
    end = tl.minimum(first + chunks_per_item * chunk, inputs)
    total = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    chunk_end = first + chunk
    for begin in tl.range(first, end, BLOCK_K, num_stages=STAGES):
        if WHOLE:
            xs = tl.load(x_at + begin, mask=is_row[:, None], other=0)
            ws = tl.load(w_at + begin)
        else:
            inside = (begin + k < inputs)[None, :]
            xs = tl.load(x_at + begin, mask=is_row[:, None] & inside, other=0)
            ws = tl.load(w_at + begin, mask=inside, other=0)
        xs = tl.trans(xs.to(DOT))
        if SCALED:
            # Products of one block of weights, whose scale is one number.
            scale = tl.load(scale_at + begin // SCALE_BLOCK)
            ws = float_of_stored(ws, NATIVE_E4M3).to(DOT)
            sums += tl.dot(ws, xs, input_precision="ieee") * scale
        else:
            sums = tl.dot(ws.to(DOT), xs, sums, input_precision="ieee")
        if begin + BLOCK_K == chunk_end:
            total += sums
            sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
            chunk_end += chunk
    total += sums

    place = row.to(tl.int64)[None, :] * outputs + m[:, None]
    stored = is_row[None, :] & is_output[:, None]
    if first == 0 and end == inputs:
        if BIAS:
            total += tl.load(bias + m, mask=is_output, other=0).to(tl.float32)[:, None]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=stored)
    else:
        parts += tl.program_id(2).to(tl.int64) * rows * outputs
        tl.store(parts + place, total, mask=stored)


@triton.jit
def float_of_stored(stored, NATIVE_E4M3: tl.constexpr):
    if NATIVE_E4M3:
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        return float_of_e4m3(stored)


@dataclass(frozen=True)
class ProductTile:
    rows: int
    outputs: int
    inputs: int  # of one step of the loop
    warps: int
    stages: int  # steps in shared memory, one in use and the others in flight


# By bytes of a weight. Chosen by cross-compiling: no spills, loads in flight, and enough of them;
# at 128 rows the matrix instructions of a tile take half the time of reading its weights on sm_90.
# Not timed yet. Float32 is there to be right.
TILES = {
    "sm_80": {1: ProductTile(64, 128, 128, 8, 4), 2: ProductTile(64, 128, 64, 8, 4)},
    "sm_90": {1: ProductTile(64, 128, 128, 8, 4), 2: ProductTile(128, 128, 64, 8, 5)},
    "sm_100": {1: ProductTile(64, 128, 128, 8, 4), 2: ProductTile(128, 128, 64, 8, 5)},
}
FLOAT32_TILE = ProductTile(32, 64, 32, 4, 3)


def linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """See `ops.linear`; weight [M, K]."""
    return launch(x, weight, bias, scales, choose_tile(x, weight))


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, scales: Tensor | None, tile: ProductTile
) -> Tensor:
    """The op with a given tile: one launch, and a second one where chunks are items."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs)
    if out.numel() == 0:
        return out
    row_tiles, tiles = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)
    chunk, splits = chunk_inputs(inputs), n_splits(inputs, row_tiles * tiles, x.device)
    parts = x.new_empty(splits if splits > 1 else 0, rows, outputs, dtype=torch.float32)
    linear_kernel[(row_tiles, tiles, splits)](
        x,
        weight if scales is None else weight.view(torch.uint8),
        parts if scales is None else scales,
        out if bias is None else bias,
        out,
        parts,
        rows,
        inputs,
        outputs,
        chunk,
        1 if splits > 1 else triton.cdiv(max(inputs, 1), chunk),
        BLOCK_ROWS=tile.rows,
        BLOCK_M=tile.outputs,
        BLOCK_K=tile.inputs,
        STAGES=tile.stages,
        WHOLE=inputs % tile.inputs == 0,
        SCALED=scales is not None,
        BIAS=bias is not None,
        NATIVE_E4M3=converts_e4m3(x.device),
        UPCAST=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
    )
    if splits > 1:
        sum_chunks(parts, bias, out)
    return out


def choose_tile(x: Tensor, weight: Tensor) -> ProductTile:
    """By the types and the card alone."""
    if x.dtype == torch.float32:
        return FLOAT32_TILE
    return TILES[architecture(x.device)][weight.itemsize]
