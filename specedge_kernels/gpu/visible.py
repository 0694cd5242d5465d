"""Which keys a query node sees, as one 64-bit word per row and tile of at most 64 keys.

Slots count along the cache (prefix, then nodes in their own order); positions count along a path.
Knows no queries, no values and no pages.
"""

import triton
import triton.language as tl

from specedge_kernels.gpu.bits import popcount


@triton.jit
def ones_below(n):
    """Words with bits 0 .. n-1 set; none for n <= 0, all for n >= 64."""
    ones = tl.full(n.shape, -1, tl.int64).to(tl.uint64, bitcast=True)
    shift = tl.minimum(tl.maximum(64 - n, 1), 63).to(tl.uint64)
    return tl.where(n >= 64, ones, tl.where(n <= 0, ones ^ ones, ones >> shift))


@triton.jit
def _mask_word(ancestors, row, index, W: tl.constexpr):
    """Word index[r] of each row's mask [N, W]; zero outside it."""
    inside = (index >= 0) & (index < W)
    return tl.load(ancestors + row * W + index, mask=inside, other=0).to(tl.uint64, bitcast=True)


@triton.jit
def _path_word(ancestors, row, first_node, W: tl.constexpr):
    """Bits first_node .. first_node+63 of each row's mask; first_node may be negative."""
    index, shift = first_node >> 6, (first_node & 63).to(tl.uint64)
    low = _mask_word(ancestors, row, index, W)
    high = _mask_word(ancestors, row, index + 1, W)
    # Two shifts, because a shift by 64 is undefined.
    return (low >> shift) | ((high << 1) << (63 - shift))


@triton.jit
def visible_word(ancestors, row, node, chain, start, prefix, first_key, W: tl.constexpr):
    """Bit j: the row sees the key in slot first_key + j. row, node, chain, start [BLOCK_ROWS]."""
    first_node = tl.full(row.shape, 0, tl.int32) + (first_key - prefix)
    causal = ones_below(tl.where(chain, node + 1, 0) - first_node)
    path = _path_word(ancestors, row, first_node, W)
    whole_prefix = ones_below(-first_node)
    # A chain longer than the mask has no bits beyond it; the bits it has agree with `causal`.
    return (causal | path | whole_prefix) & ~ones_below(start - first_key)


@triton.jit
def has_bit(word, column):
    """word [X] and column [Y] below 64 -> [X, Y]: whether the bit is set."""
    # 32-bit halves: 64-bit shifts of a whole tile cost twice the registers.
    low, high = word.to(tl.uint32), (word >> 32).to(tl.uint32)
    half = tl.where(column[None, :] < 32, low[:, None], high[:, None])
    return ((half >> (column % 32).to(tl.uint32)[None, :]) & 1) != 0


@triton.jit
def window_start(ancestors, row, depth, chain, prefix, window, W: tl.constexpr):
    """The first slot of the last `window` tokens of each row's path."""
    dropped = depth + 1 - window  # nodes of the path that the window leaves out
    return path_slots(ancestors, row, chain, tl.maximum(prefix + dropped, 0), prefix, W)


@triton.jit
def path_slots(ancestors, row, chain, positions, prefix, W: tl.constexpr):
    """The slots of `positions` on each row's path; any slot beyond its end. All [X]."""
    index = positions - prefix
    before, skipped, first_node = index * 0, index * 0, index * 0
    found = _mask_word(ancestors, row, first_node, W)
    for w in tl.static_range(W):
        # The last word with no more than `index` nodes before it holds the one at `index`.
        word = _mask_word(ancestors, row, tl.full(row.shape, w, tl.int32), W)
        reached = before <= index
        found = tl.where(reached, word, found)
        skipped = tl.where(reached, index - before, skipped)
        first_node = tl.where(reached, 64 * w, first_node)
        before += popcount(word)
    node = tl.where(chain, index, first_node + _position_of(found, skipped))
    return prefix + tl.where(index < 0, index, node)


@triton.jit
def _position_of(word, k):
    """Where set bit number k (from 0) is; 64 if there are no more than k."""
    position = k * 0
    for step in tl.static_range(7):
        further = position + (64 >> step)
        position = tl.where(popcount(word & ones_below(further)) <= k, further, position)
    return tl.minimum(position, 64)
