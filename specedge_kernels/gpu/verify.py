"""The walk of each tree along the target's tokens on a GPU: one program per request, no chase.

A node is accepted if nothing on its path, itself included, failed to match: one word of ballots
per 64 nodes decides for all nodes at once. Knows neither logits nor caches.
"""

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.bits import highest_bit, popcount


@triton.jit(do_not_specialize=["words", "max_path"])
def verify_kernel(
    tokens,  # [N]
    ancestors,  # [N, words]
    offsets,  # [B + 1]
    target,  # [N]
    path,  # [B, max_path]
    accepted_lens,  # [B]
    bonus,  # [B]
    words,
    max_path,
    WORDS: tl.constexpr,
    PATH: tl.constexpr,
):
    b = tl.program_id(0)
    first = tl.load(offsets + b).to(tl.int64)
    n = tl.load(offsets + b + 1) - first
    node = tl.arange(0, 64 * WORDS)
    inside = node < n
    word = tl.arange(0, WORDS)[None, :]
    masks = load_paths(ancestors, (first + node)[:, None], node[:, None], n, word, words)

    parent = parents_of(masks, node[:, None], word)
    token = tl.load(tokens + first + node, mask=inside, other=0)
    wanted = tl.load(target + first + parent, mask=inside & (parent >= 0), other=0)
    match = (parent < 0) | (token == wanted)
    own = own_bit(node[:, None], word)
    mismatches = tl.sum(tl.where(match[:, None], own ^ own, own), 0)
    accepted = inside & (tl.sum(((masks & mismatches[None, :]) != 0).to(tl.int32), 1) == 0)

    # The deepest, and of equals the lowest: ranked by one number.
    length = tl.sum(popcount(masks), 1)
    rank = tl.where(accepted, length * (64 * WORDS) - node, 0)
    best = tl.where(tl.max(rank, 0) > 0, tl.argmax(rank, 0), -1)

    on_path = tl.sum(tl.where(node[:, None] == best, masks, own ^ own), 0)  # [WORDS]
    bits = tl.sum(((on_path[None, :] & own) != 0).to(tl.int32), 1)
    place = tl.cumsum(bits, 0) - bits
    kept = (bits > 0) & (place < max_path)
    path += b.to(tl.int64) * max_path
    tl.store(path + place, node, mask=kept)
    count = tl.sum(kept.to(tl.int32), 0)
    slot = tl.arange(0, PATH)
    tl.store(path + slot, -1, mask=(slot >= count) & (slot < max_path))
    last = tl.max(tl.where(kept, node, -1), 0)
    tl.store(accepted_lens + b, count)
    tl.store(bonus + b, tl.load(target + first + last, mask=last >= 0, other=-1))


@triton.jit
def load_paths(ancestors, row, node, n, word, words):
    """Masks [64 * WORDS, WORDS] as uint64: a node and its ancestors, nothing above the node."""
    mask = tl.load(ancestors + row * words + word, mask=(node < n) & (word < words), other=0)
    ones = tl.full(mask.shape, -1, tl.int64).to(tl.uint64, bitcast=True)
    count = node + 1 - 64 * word
    shift = tl.minimum(tl.maximum(64 - count, 0), 63).to(tl.uint64)
    below = tl.where(count > 0, ones >> shift, ones ^ ones)
    return mask.to(tl.uint64, bitcast=True) & below


@triton.jit
def own_bit(node, word):
    one = (node * 0 + 1).to(tl.uint64)
    return tl.where(node // 64 == word, one << (node % 64).to(tl.uint64), one ^ one)


@triton.jit
def parents_of(masks, node, word):
    """The highest ancestor of each node, itself left out; -1 for a root."""
    above = highest_bit(masks & ~own_bit(node, word))
    return tl.max(tl.where(above >= 0, above + 64 * word, -1), 1)


def verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, words = offsets.shape[0] - 1, ancestors.shape[1]
    most_words = triton.next_power_of_2(max(words, 1))
    path = offsets.new_empty(batch, max_path)
    accepted_lens = offsets.new_empty(batch)
    bonus = target.new_empty(batch)
    if batch:
        verify_kernel[(batch,)](
            tokens,
            ancestors,
            offsets,
            target,
            path,
            accepted_lens,
            bonus,
            words,
            max_path,
            WORDS=most_words,
            # one kernel for all paths that such trees have
            PATH=triton.next_power_of_2(max(max_path, 64 * most_words)),
        )
    return path, accepted_lens, bonus
