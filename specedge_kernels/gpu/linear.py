"""Products with a weight on a GPU, where the sums of a row depend on K and on nothing else.

A sum is one accumulation of matrix instructions from zero on, in increasing k. Rows beyond the last
are zero and are not stored: more rows are more tiles. Wider tiles, which read the rows less often,
have more outputs and the same instructions for each of them, so no bit depends on the tile. Weights
are the left operand of the instructions, whose width is then that of the rows. Knows no layers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.paged import float_of_e4m3
from specedge_kernels.gpu.sum_chunks import n_multiprocessors
from specedge_kernels.gpu.tiles import architecture, converts_e4m3

SCALE_BLOCK = tl.constexpr(128)  # outputs and inputs of float8 weights that share a scale


@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x,  # [N, K]
    weight,  # [M, K]
    scales,  # [ceil(M / 128), ceil(K / 128)] f32; not read unless SCALED
    bias,  # [M]; not read unless BIAS
    out,  # [N, M]
    rows,
    inputs,
    outputs,
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

    sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    for begin in tl.range(0, inputs, BLOCK_K, num_stages=STAGES):
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

    if BIAS:
        sums += tl.load(bias + m, mask=is_output, other=0).to(tl.float32)[:, None]
    place = row.to(tl.int64)[None, :] * outputs + m[:, None]
    stored = is_row[None, :] & is_output[:, None]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=stored)


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


# By bytes of a weight. Chosen by cross-compiling: no spills, loads in flight, and enough of them.
# Tiles of an entry have the same rows and inputs, so that all of them take the same instructions,
# but that one of Blackwell's has 64 outputs in the first tile and else 128. Not timed yet.
TILES = {
    "sm_80": {
        1: (ProductTile(64, 128, 128, 8, 4),),
        2: (
            ProductTile(64, 64, 64, 4, 4),
            ProductTile(64, 128, 64, 8, 4),
            ProductTile(64, 256, 64, 8, 3),
        ),
    },
    "sm_90": {
        1: (ProductTile(64, 64, 128, 4, 4), ProductTile(64, 128, 128, 8, 4)),
        2: (
            ProductTile(128, 64, 64, 4, 8),
            ProductTile(128, 128, 64, 8, 5),
            ProductTile(128, 256, 64, 8, 4),
        ),
    },
    "sm_100": {
        1: (ProductTile(64, 128, 128, 8, 4),),
        2: (
            ProductTile(128, 64, 64, 4, 8),
            ProductTile(128, 128, 64, 8, 5),
            ProductTile(128, 256, 64, 8, 4),
        ),
    },
}
# Float32 is there to be right.
FLOAT32_TILE = ProductTile(32, 64, 32, 4, 3)
# What a multiprocessor multiplies and adds while it loads one number of 16 bits from the L2: by
# data sheets 145 on an H100, 150 on a B200 and 60 on an A100.
PRODUCTS_OF_A_LOAD = 128


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
    """The op with a given tile."""
    (rows, inputs), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs)
    if out.numel() == 0:
        return out
    linear_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs))](
        x,
        weight if scales is None else weight.view(torch.uint8),
        out if scales is None else scales,
        out if bias is None else bias,
        out,
        rows,
        inputs,
        outputs,
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
    return out


def choose_tile(x: Tensor, weight: Tensor) -> ProductTile:
    """The one of its types and card that is estimated to take the least time."""
    if x.dtype == torch.float32:
        return FLOAT32_TILE
    rows, outputs = x.shape[0], weight.shape[0]
    multiprocessors = n_multiprocessors(x.device)

    def time(tile: ProductTile) -> float:
        """For each input, in loads by a multiprocessor: all loads, or the busiest's products."""
        tiles: int = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
        loads = tiles / multiprocessors * (tile.outputs + min(rows, tile.rows))
        products: int = triton.cdiv(tiles, multiprocessors) * tile.outputs * tile.rows
        return max(loads, products / PRODUCTS_OF_A_LOAD)

    return min(TILES[architecture(x.device)][weight.itemsize], key=time)
