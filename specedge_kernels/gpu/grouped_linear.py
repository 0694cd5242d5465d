"""Products with several sets of weights on a GPU: rows sorted by set, then one launch for all.

Launch 1 has a program for each set, which finds the pairs of a row and that set and lists them in
tiles. Launch 2 has a program for each tile of pairs and of outputs, as many as there could be; what
is beyond the last tile ends at once. So nothing waits for the host, a set that no pair names costs
one short program, and weights are read once for as many pairs as a tile has. A sum is one
accumulation of matrix instructions in increasing k, in tiles of one shape: bits do not depend on
neighbours. Knows no experts and no adapters.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

BLOCK_PAIRS = 512  # that are looked at at a time


@triton.jit(do_not_specialize=["n_pairs", "n_tiles"])
def sort_pairs_kernel(
    groups,  # [n_pairs]
    pairs,  # [n_pairs]: by their sets, those without one last
    tiles,  # [n_tiles, 3]: a set, -1 beyond the last tile, and its first pair and end in `pairs`
    n_pairs,
    n_tiles,
    n_sets,
    ROWS: tl.constexpr,  # pairs of a tile
    SETS: tl.constexpr,  # a power of two above n_sets + 1
    BLOCK: tl.constexpr,
):
    own = tl.program_id(0)  # n_sets for pairs without a set
    r, s = tl.arange(0, BLOCK), tl.arange(0, SETS)
    counts = tl.zeros([SETS], tl.int32)
    for begin in range(0, n_pairs, BLOCK):
        group = set_of(groups, begin + r, n_pairs, n_sets)
        counts += tl.histogram(group, SETS).to(tl.int32)
    counts = tl.where(s <= n_sets, counts, 0)
    in_tiles = (counts + ROWS - 1) // ROWS
    first = tl.sum(tl.where(s < own, counts, 0), 0)
    end = first + tl.sum(tl.where(s == own, counts, 0), 0)
    tile = tl.sum(tl.where(s < own, in_tiles, 0), 0)

    place = first
    for begin in range(0, n_pairs, BLOCK):
        is_own = set_of(groups, begin + r, n_pairs, n_sets) == own
        mine = is_own.to(tl.int32)
        tl.store(pairs + place + tl.cumsum(mine, 0) - 1, begin + r, mask=is_own)
        place += tl.sum(mine, 0)
    for at in range(first, end, ROWS):
        tl.store(tiles + tile * 3, own)
        tl.store(tiles + tile * 3 + 1, at)
        tl.store(tiles + tile * 3 + 2, tl.minimum(at + ROWS, end))
        tile += 1
    if own == 0:
        for unused in range(tl.sum(in_tiles, 0), n_tiles):
            tl.store(tiles + unused * 3, -1)


@triton.jit
def set_of(groups, pair, n_pairs, n_sets):
    """The set of each pair: n_sets for none, n_sets + 1 for what is no pair."""
    group = tl.load(groups + pair, mask=pair < n_pairs, other=0)
    group = tl.where((group >= 0) & (group < n_sets), group, n_sets)
    return tl.where(pair < n_pairs, group, n_sets + 1)


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


def grouped_linear(
    x: Tensor, weight: Tensor, out_features: int, groups: Tensor, bias: Tensor | None
) -> Tensor:
    """See `ops.grouped_linear`; weight [E, M, K]."""
    n_sets, outputs, inputs = weight.shape
    n_pairs, tile = groups.numel(), TILES[x.itemsize]
    out = x.new_empty(n_pairs, outputs)
    if out.numel() == 0:
        return out
    n_tiles = min(n_pairs, n_sets + 1) + n_pairs // tile.rows
    pairs, tiles = groups.new_empty(n_pairs), groups.new_empty(n_tiles, 3)
    sort_pairs_kernel[(n_sets + 1,)](
        *(groups, pairs, tiles, n_pairs, n_tiles, n_sets),
        ROWS=tile.rows,
        SETS=triton.next_power_of_2(n_sets + 2),
        BLOCK=BLOCK_PAIRS,
    )
    grouped_linear_kernel[(n_tiles, triton.cdiv(outputs, tile.outputs))](
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
