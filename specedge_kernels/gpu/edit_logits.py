"""Bias and penalties in place, on a GPU: one program per row, at the tokens of its lists alone.

The tokens drafted above a row are few, so each of the text is compared with all of them. Knows no
model and draws nothing.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_PAIRS = 4096  # tokens compared at a time


@triton.jit(do_not_specialize=["words", "batch"])
def edit_logits_kernel(
    logits,  # [N, vocabulary]
    tokens,  # [N]
    ancestors,  # [N, words]
    offsets,  # [B + 1]
    text_offsets,  # [B + 1]
    text_tokens,  # [K]
    text_counts,  # [K]
    bias_offsets,  # [B + 1]
    bias_tokens,  # [J]
    bias_values,  # [J]
    repetition,  # [B]
    frequency,  # [B]
    presence,  # [B]
    vocabulary,
    words,
    batch,
    BATCH: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    request = tl.arange(0, BATCH)
    ends = tl.load(offsets + 1 + request, mask=request < batch, other=0x7FFFFFFF)
    b = tl.sum((ends <= row).to(tl.int32), 0)
    # Beyond the last request there is nothing to do: padding of a fixed size.
    if b < batch:
        logits += row * vocabulary
        add_bias(logits, bias_offsets + b, bias_tokens, bias_values, BLOCK)
        # What one thread stored another reads.
        tl.debug_barrier()
        numbers = (tl.load(repetition + b), tl.load(frequency + b), tl.load(presence + b))
        first = tl.load(offsets + b).to(tl.int64)
        path = (tokens + first, ancestors + row * words, (row - first).to(tl.int32))
        node = tl.arange(0, NODES)
        drafted = drafted_tokens(path, node, words)
        done = node * 0
        for start in range(tl.load(text_offsets + b), tl.load(text_offsets + b + 1), BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < tl.load(text_offsets + b + 1)
            token = tl.load(text_tokens + i, mask=inside, other=-2)
            same = (token[:, None] == drafted[None, :]).to(tl.int32)
            count = tl.load(text_counts + i, mask=inside, other=0) + tl.sum(same, 1)
            penalise(logits + token, numbers, count, inside)
            done = tl.maximum(done, tl.max(same, 0))
        # What was drafted and is not in the text, where it comes first.
        count = node * 0
        for start in range(0, NODES, BLOCK):
            other = start + tl.arange(0, BLOCK)
            same = drafted[:, None] == drafted_tokens(path, other, words)[None, :]
            count += tl.sum(same.to(tl.int32), 1)
            earlier = (same & (other[None, :] < node[:, None])).to(tl.int32)
            done = tl.maximum(done, tl.max(earlier, 1))
        penalise(logits + drafted, numbers, count, (drafted >= 0) & (done == 0))


@triton.jit
def add_bias(logits, offsets, tokens, values, BLOCK: tl.constexpr):
    end = tl.load(offsets + 1)
    for start in range(tl.load(offsets), end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        token = tl.load(tokens + i, mask=i < end, other=0)
        x = tl.load(logits + token, mask=i < end, other=0.0)
        tl.store(logits + token, x + tl.load(values + i, mask=i < end, other=0.0), mask=i < end)


@triton.jit
def drafted_tokens(path, node, words):
    """The tokens of nodes on the path of a row, -1 elsewhere and for node 0.

    path: the tokens of its tree, the words of its mask, its own node.
    """
    tokens, ancestors, own = path
    inside = (node > 0) & (node <= own) & (node < 64 * words)
    word = tl.load(ancestors + node // 64, mask=inside, other=0)
    return tl.load(tokens + node, mask=((word >> (node % 64)) & 1) != 0, other=-1)


@triton.jit
def penalise(places, numbers, count, inside):
    repetition, frequency, presence = numbers
    x = tl.load(places, mask=inside, other=0.0)
    x = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x -= frequency * count.to(tl.float32)
    tl.store(places, tl.where(count > 0, x - presence, x), mask=inside)


def edit_logits(
    logits: Tensor,
    tokens: Tensor,
    ancestors: Tensor,
    offsets: Tensor,
    text_offsets: Tensor,
    text_tokens: Tensor,
    text_counts: Tensor,
    bias_offsets: Tensor,
    bias_tokens: Tensor,
    bias_values: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    rows, vocabulary = logits.shape
    batch, words = repetition.shape[0], ancestors.shape[1]
    nodes = 64 * triton.next_power_of_2(max(words, 1))
    if rows and batch:
        # Each step is rounded as specified, so nothing is fused.
        edit_logits_kernel[(rows,)](
            *(logits, tokens, ancestors, offsets),
            *(text_offsets, text_tokens, text_counts, bias_offsets, bias_tokens, bias_values),
            *(repetition, frequency, presence, vocabulary, words, batch),
            BATCH=triton.next_power_of_2(batch),
            NODES=nodes,
            BLOCK=max(BLOCK_PAIRS // nodes, 16),
            enable_fp_fusion=False,
        )
