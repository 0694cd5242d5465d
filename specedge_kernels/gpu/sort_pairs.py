"""Pairs of a row and a set of weights, sorted by set and listed in tiles, for grouped products.

A program for each set finds its pairs, so nothing waits for the host, and a set that no pair names
has no tile. Knows no weights.
"""

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


def sort_pairs(groups: Tensor, n_sets: int, rows: int) -> tuple[Tensor, Tensor]:
    """groups [N, k] int32 in -1 .. n_sets-1 -> pairs [N k], tiles [T, 3] of at most `rows` pairs.

    As many tiles as there could be for N k pairs; those beyond the last begin with -1.
    """
    n_pairs = groups.numel()
    n_tiles = min(n_pairs, n_sets + 1) + n_pairs // rows
    pairs, tiles = groups.new_empty(n_pairs), groups.new_empty(n_tiles, 3)
    sort_pairs_kernel[(n_sets + 1,)](
        *(groups, pairs, tiles, n_pairs, n_tiles, n_sets),
        ROWS=rows,
        SETS=triton.next_power_of_2(n_sets + 2),
        BLOCK=BLOCK_PAIRS,
    )
    return pairs, tiles
