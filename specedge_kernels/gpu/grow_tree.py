"""A round of best-first growth on a GPU: one program per tree, no host in between.

Scores are float64, as sums of float32 log-probabilities are on the host, so that both sides break
ties alike. The frontier is picked one node at a time; a node is within the budget if few enough
are better. Knows neither the model nor the cache's pages.
"""

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.build_tree import bit_of

NOBODY = tl.constexpr(-2)  # the root is -1


@triton.jit(do_not_specialize=["first_slot"])
def grow_tree_kernel(
    tokens,  # [B, capacity]
    parents,  # [B, capacity]
    scores,  # [B, capacity] f64
    depths,  # [B, capacity]
    slots,  # [B, capacity]
    found,  # [B]
    expanded,  # [B, n_expanded]
    ids,  # [B, n_expanded, width]
    logprobs,  # [B, n_expanded, width]
    budget,  # [B]
    frontier,  # [B, beams]
    row_tokens,  # [B, beams]
    ancestors,  # [B, beams, words]
    row_depth,  # [B, beams]
    capacity,
    n_expanded,
    width,
    first_slot,
    beams,
    words,
    OFFERED: tl.constexpr,
    CAPACITY: tl.constexpr,
    BEAMS: tl.constexpr,
    WORDS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    tokens += b * capacity
    parents += b * capacity
    scores += b * capacity
    depths += b * capacity
    slots += b * capacity
    frontier += b * beams

    # Children of nobody are at the end, so the others stay together.
    offer = tl.arange(0, OFFERED)
    n_offers = n_expanded * width
    inside = offer < n_offers
    parent = tl.load(expanded + b * n_expanded + offer // width, mask=inside, other=NOBODY)
    first = tl.load(found + b)
    child = first + offer
    added = (parent > NOBODY) & (child < capacity)
    below = added & (parent >= 0)
    score = tl.load(scores + parent, mask=below, other=0.0)
    depth = tl.load(depths + parent, mask=below, other=-1)
    logprob = tl.load(logprobs + b * n_offers + offer, mask=added, other=0.0)
    tl.store(tokens + child, tl.load(ids + b * n_offers + offer, mask=added), mask=added)
    tl.store(parents + child, parent, mask=added)
    tl.store(scores + child, score + tl.minimum(logprob, 0.0).to(tl.float64), mask=added)
    tl.store(depths + child, depth + 1, mask=added)
    tl.store(slots + child, -1, mask=added)
    count = first + tl.sum(added.to(tl.int32), 0)
    # What follows reads what other threads have stored, and writes what they have read.
    tl.debug_barrier()
    tl.store(found + b, count)

    node = tl.arange(0, CAPACITY)
    known = node < count
    score = tl.load(scores + node, mask=known, other=float("-inf"))
    possible = known & (score > float("-inf"))
    waiting = possible & (tl.load(slots + node, mask=known, other=0) < 0)
    limit = tl.load(budget + b)
    for beam in range(beams):
        top = tl.max(tl.where(waiting, score, float("-inf")), 0)
        best = tl.min(tl.where(waiting & (score == top), node, CAPACITY), 0)
        better = known & ((score > top) | ((score == top) & (node < best)))
        taken = (best < CAPACITY) & (tl.sum(better.to(tl.int32), 0) < limit)
        tl.store(frontier + beam, tl.where(taken, best, NOBODY))
        waiting &= node != best
    tl.debug_barrier()

    row = tl.arange(0, BEAMS)
    real = row < beams
    chosen = tl.load(frontier + row, mask=real, other=NOBODY)
    # Not in the loop: a slower warp might still be reading which nodes have a slot.
    tl.store(slots + chosen, first_slot + row, mask=chosen >= 0)
    word = tl.arange(0, WORDS)[None, :]
    mask = bit_of((first_slot + row)[:, None], word)
    at = tl.load(parents + chosen, mask=chosen >= 0, other=-1)
    while tl.max(at, 0) >= 0:
        place = tl.load(slots + at, mask=at >= 0, other=0)
        mask |= tl.where((at >= 0)[:, None], bit_of(place[:, None], word), 0)
        at = tl.load(parents + at, mask=at >= 0, other=-1)
    to = b * beams + row
    store_to = ancestors + to[:, None] * words + word
    tl.store(store_to, mask, mask=real[:, None] & (word < words))
    tl.store(row_tokens + to, tl.load(tokens + chosen, mask=chosen >= 0, other=0), mask=real)
    tl.store(row_depth + to, tl.load(depths + chosen, mask=chosen >= 0, other=0), mask=real)


def grow_tree(
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    depths: Tensor,
    slots: Tensor,
    found: Tensor,
    expanded: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    budget: Tensor,
    first_slot: int,
    beams: int,
    words: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, capacity = tokens.shape
    n_expanded, width = ids.shape[1:]
    frontier = parents.new_empty(batch, beams)
    row_tokens = tokens.new_empty(batch * beams)
    ancestors = tokens.new_empty(batch * beams, words)
    row_depth = depths.new_empty(batch * beams)
    if batch:
        grow_tree_kernel[(batch,)](
            *(tokens, parents, scores, depths, slots, found, expanded, ids, logprobs, budget),
            *(frontier, row_tokens, ancestors, row_depth),
            *(capacity, n_expanded, width, first_slot, beams, words),
            OFFERED=triton.next_power_of_2(max(n_expanded * width, 1)),
            CAPACITY=triton.next_power_of_2(max(capacity, 1)),
            BEAMS=triton.next_power_of_2(beams),
            WORDS=triton.next_power_of_2(words),
        )
    return frontier, row_tokens, ancestors, row_depth
