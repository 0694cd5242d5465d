"""How one launch of tree attention is cut into work items, computed inside the kernels.

A request's prefix is cut into splits that depend on that request alone (its prefix, its rows, the
window), never on its batch mates or on the width of the page table. Where a path's bits must not
depend on the tree around it either, paths are cut at fixed positions, inside the tree as in the
prefix. Every program derives the cut of the whole batch from prefix_lens, n_nodes and offsets, so
there is no planning launch, no host synchronisation and nothing to refresh when a graph is
replayed. Knows no keys and no scores.
"""

import triton
import triton.language as tl

MIN_SPLIT_TOKENS = tl.constexpr(256)
MAX_SPLITS = tl.constexpr(16)
# Partial results move 8 bytes of float32 per row and split (written, then read), 16-bit keys and
# values 4 per token: at 8 tokens per row the partials add at most a quarter to the traffic.
SPLIT_TOKENS_PER_ROW = tl.constexpr(8)
# Of every path, when bits must not depend on the tree: a multiple of all tiles of keys.
INVARIANT_SPLIT_TOKENS = tl.constexpr(1024)


@triton.jit
def split_prefix(
    prefix,
    nodes,
    rows,
    window,
    WINDOW: tl.constexpr,
    INVARIANT: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """First key of interest, tokens in a split, number of splits; rows counts query vectors."""
    unit: tl.constexpr = INVARIANT_SPLIT_TOKENS if INVARIANT else BLOCK_KEYS
    first = prefix * 0
    if WINDOW:
        first = tl.maximum(prefix + 1 - window, 0) // unit * unit
    if INVARIANT:
        size = first * 0 + unit
        tokens = prefix + nodes - first
    else:
        tokens = tl.maximum(prefix - first, 0)
        wanted = tokens // tl.maximum(MIN_SPLIT_TOKENS, SPLIT_TOKENS_PER_ROW * rows)
        wanted = tl.minimum(tl.maximum(wanted, 1), MAX_SPLITS)
        size = tl.maximum(tl.cdiv(tokens, wanted * BLOCK_KEYS), 1) * BLOCK_KEYS
    # Rounding up to whole tiles may leave the last splits empty: count those that begin inside.
    return first, size, tl.maximum(tl.cdiv(tokens, size), 1)


@triton.jit
def plan_batch(
    prefix_lens,
    n_nodes,
    offsets,
    batch,
    window,
    GROUP: tl.constexpr,
    BATCH: tl.constexpr,
    WINDOW: tl.constexpr,
    INVARIANT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Of every request [BATCH]: (row tile, split) pairs, and rows of partial results."""
    request = tl.arange(0, BATCH)
    known = request < batch
    begin = tl.load(offsets + request, mask=known, other=0)
    rows = tl.load(offsets + request + 1, mask=known, other=0) - begin
    prefix = tl.load(prefix_lens + request, mask=known, other=0)
    nodes = tl.load(n_nodes + request, mask=known, other=0)
    _, _, splits = split_prefix(prefix, nodes, rows * GROUP, window, WINDOW, INVARIANT, BLOCK_KEYS)
    items = tl.cdiv(rows * GROUP, BLOCK_ROWS) * splits
    return items, tl.where(splits > 1, rows * splits, 0)


@triton.jit
def find_request(counts, index, BATCH: tl.constexpr):
    """Where request b owns counts[b] indices in a row: whose `index` is, and its place there."""
    b = tl.sum((tl.cumsum(counts, 0) <= index).to(tl.int32), 0)
    return b, index - sum_before(counts, b, BATCH)


@triton.jit
def sum_before(counts, b, BATCH: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, BATCH) < b, counts, 0), 0)


def max_partial_rows(
    rows: int, batch: int, group: int, context_tokens: int, invariant: bool
) -> int:
    """Enough rows of partial results for any batch of these sizes, 0 if no prefix can be split."""
    splits: int
    if invariant:
        splits = triton.cdiv(context_tokens, INVARIANT_SPLIT_TOKENS.value)
        return splits * rows if splits > 1 else 0
    splits = min(MAX_SPLITS.value, context_tokens // MIN_SPLIT_TOKENS.value)
    if splits < 2:
        return 0
    row_tokens: int = SPLIT_TOKENS_PER_ROW.value * group
    return min(splits * rows, batch * (context_tokens // row_tokens))
