"""Products with several sets of weights on a GPU: rows sorted by set, then one launch for all.

After `sort_pairs` there is a program for each tile of pairs and of outputs, as many as there could
be; what is beyond the last tile ends at once. So weights are read once for as many pairs as a tile
has. A sum is one accumulation of matrix instructions in increasing k, in tiles of one shape: bits
do not depend on neighbours. Knows no experts and no adapters.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.sort_pairs import sort_pairs


@triton.jit
def grouped_linear_kernel(
    x,  # [N, K]
    weight,  # [n_sets, M, K]
    bias,  # [n_sets, M] f32; not read unless BIAS
    pairs,
    tiles,
    out,  # [N * per_row, M]
    inputs,
    outputs,
    n_sets,
    per_row,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of BLOCK_K
    BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    DOT: tl.constexpr = tl.float32 if UPCAST else x.dtype.element_ty
    # Tiles of one set are next to each other: they share weights in the L2.
    entry = tiles + tl.program_id(0) * 3
    own = tl.load(entry)
    if own >= 0:
        at = tl.load(entry + 1) + tl.arange(0, ROWS)
        is_pair = at < tl.load(entry + 2)
        pair = tl.load(pairs + at, mask=is_pair, other=0)
        m, k = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
        is_output = m < outputs
        sums = tl.zeros([BLOCK_M, ROWS], tl.float32)
        if own < n_sets:
            x_at = x + (pair // per_row).to(tl.int64)[:, None] * inputs + k[None, :]
            # Outputs beyond the last repeat it, and are not stored.
            output = own.to(tl.int64) * outputs + tl.minimum(m, outputs - 1)
            w_at = weight + output[:, None] * inputs + k[None, :]
            for begin in tl.range(0, inputs, BLOCK_K, num_stages=STAGES):
                if WHOLE:
                    xs = tl.load(x_at + begin, mask=is_pair[:, None], other=0)
                    ws = tl.load(w_at + begin)
                else:
                    inside = (begin + k < inputs)[None, :]
                    xs = tl.load(x_at + begin, mask=is_pair[:, None] & inside, other=0)
                    ws = tl.load(w_at + begin, mask=inside, other=0)
                sums = tl.dot(ws.to(DOT), tl.trans(xs.to(DOT)), sums, input_precision="ieee")
            if BIAS:
                sums += tl.load(bias + output)[:, None]
        place = pair.to(tl.int64)[None, :] * outputs + m[:, None]
        stored = is_pair[None, :] & is_output[:, None]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=stored)


@dataclass(frozen=True)
class GroupedTile:
    rows: int
    outputs: int
    inputs: int  # of one step of the loop
    warps: int
    stages: int


# By bytes of a weight: few pairs share a set, so tiles are narrow and time goes into weights.
# Chosen by cross-compiling: no spills, loads in flight. Not timed yet. Float32 is to be right.
TILES = {2: GroupedTile(32, 128, 64, 4, 4), 4: GroupedTile(16, 64, 32, 4, 3)}
# Where rows begin at any number, each is loaded by itself: fewer of them at a time.
ODD_TILE = GroupedTile(32, 64, 32, 4, 3)


def grouped_linear(
    x: Tensor, weight: Tensor, out_features: int, groups: Tensor, bias: Tensor | None
) -> Tensor:
    """See `ops.grouped_linear`; weight [E, M, K]."""
    n_sets, outputs, inputs = weight.shape
    tile = choose_tile(x.itemsize, inputs)
    out = x.new_empty(groups.numel(), outputs)
    if out.numel() == 0:
        return out
    pairs, tiles = sort_pairs(groups, n_sets, tile.rows)
    grouped_linear_kernel[(tiles.shape[0], triton.cdiv(outputs, tile.outputs))](
        *(x, weight, out if bias is None else bias, pairs, tiles, out),
        *(inputs, outputs, n_sets, groups.shape[1]),
        ROWS=tile.rows,
        BLOCK_M=tile.outputs,
        BLOCK_K=tile.inputs,
        STAGES=tile.stages,
        WHOLE=inputs % tile.inputs == 0,
        BIAS=bias is not None,
        UPCAST=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
    )
    return out


def choose_tile(n_bytes: int, inputs: int) -> GroupedTile:
    """By the type and the inputs alone."""
    return ODD_TILE if n_bytes == 2 and inputs % 16 else TILES[n_bytes]
