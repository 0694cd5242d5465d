"""Ancestor masks and depths on a GPU: one program per request, every node walks up on its own.

No node waits for another, so a program needs no barrier and no scratch. Prompt chunks are chains
of thousands of nodes: the walk ends where the tree's leading chain begins, where the rest of the
path is known. Knows neither tokens nor attention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NODES = 128


@triton.jit
def build_tree_kernel(
    parents,  # [N]
    offsets,  # [B + 1]
    ancestors,  # [N, words]
    depth,  # [N]
    words,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.load(offsets + tl.program_id(0)).to(tl.int64)
    n = (tl.load(offsets + tl.program_id(0) + 1) - first).to(tl.int32)
    parents += first
    word = tl.arange(0, WORDS)[None, :]
    chain = leading_chain(parents, n, BLOCK)
    for start in range(0, n, BLOCK):
        node = start + tl.arange(0, BLOCK)
        inside = node < n
        mask = tl.zeros([BLOCK, WORDS], tl.int64)
        steps = tl.zeros([BLOCK], tl.int32)
        at = tl.where(inside, node, -1)
        while tl.max(at, 0) >= chain:
            walking = at >= chain
            mask |= tl.where(walking[:, None], bit_of(at[:, None], word), 0)
            steps += walking.to(tl.int32)
            parent = tl.load(parents + at, mask=walking, other=-1)
            # Parents come first. Were one not to, the walk would still end.
            at = tl.where(walking, tl.minimum(parent, at - 1), at)
        mask |= bits_up_to(at[:, None], word)
        row = first + node
        store_to = ancestors + row[:, None] * words + word
        tl.store(store_to, mask, mask=inside[:, None] & (word < words))
        tl.store(depth + row, steps + tl.maximum(at, -1), mask=inside)


@triton.jit
def leading_chain(parents, n, BLOCK: tl.constexpr):
    """How many of the first nodes are each the child of the one before."""
    chain = n
    start = n * 0
    while start < chain:
        node = start + tl.arange(0, BLOCK)
        parent = tl.load(parents + node, mask=node < n, other=-1)
        chain = tl.minimum(chain, tl.min(tl.where(parent == node - 1, n, node), 0))
        start += BLOCK
    return chain


@triton.jit
def bit_of(node, word):
    """The bit of `node` in each word of a mask."""
    one = (node * 0 + 1).to(tl.int64)
    return tl.where(node // 64 == word, one << (node % 64).to(tl.int64), 0)


@triton.jit
def bits_up_to(node, word):
    """Bits 0 .. node in each word of a mask; none for a negative node."""
    count = node + 1 - 64 * word
    one = (count * 0 + 1).to(tl.int64)
    some = (one << tl.minimum(tl.maximum(count, 0), 63).to(tl.int64)) - 1
    return tl.where(count >= 64, -1, some)


def build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    ancestors = parents.new_empty(parents.shape[0], words, dtype=torch.int64)
    depth = torch.empty_like(parents)
    batch = offsets.shape[0] - 1
    if batch:
        build_tree_kernel[(batch,)](
            parents,
            offsets,
            ancestors,
            depth,
            words,
            WORDS=triton.next_power_of_2(words),
            BLOCK=BLOCK_NODES,
        )
    return ancestors, depth
