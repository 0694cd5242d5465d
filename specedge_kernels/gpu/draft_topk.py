"""The likeliest next tokens given the noise, on a GPU: the best of each part of a row, then of all.

Launch 1 gives every (row, part of the vocabulary) to a program: the k best columns of the part,
and the sum of its exponentials. Launch 2 merges the parts of a row in their order. A value and its
column travel as one integer, so that ties go to the lowest column. Knows no trees.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.noise import gumbel, index_of, noise_bits, noise_key, ranked, value_of

MOST_TOKENS = 64
PART = 4096  # columns of one program
LOWEST = tl.constexpr(-(1 << 63))


@triton.jit
def part_topk_kernel(
    logits,  # [N, vocabulary]
    temperature,  # [N]
    seed,  # [N]
    position,  # [N]
    token_ids,  # [vocabulary]
    part_ranks,  # [N, parts, k] i64
    part_sums,  # [N, parts, 2] f32: the largest value, the sum of exp(value - largest)
    vocabulary,
    k,
    PART: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    inside = column < vocabulary
    x = tl.load(logits + row * vocabulary + column, mask=inside, other=float("-inf"))
    heat = tl.load(temperature + row)
    if heat > 0:
        token = column.to(tl.int64)
        if HAS_IDS:
            token = tl.load(token_ids + column, mask=inside, other=0)
        key = noise_key(tl.load(seed + row), tl.load(position + row))
        x = tl.where(inside, x + heat * gumbel(noise_bits(key, token)), x)

    index = row * tl.num_programs(1) + part
    top = tl.max(x, 0)
    shift = tl.where(top > float("-inf"), top, 0.0)
    tl.store(part_sums + index * 2, top)
    tl.store(part_sums + index * 2 + 1, tl.sum(tl.exp(x - shift), 0))
    ranks = tl.where(inside, ranked(x, column), LOWEST)
    for i in range(k):
        best = tl.max(ranks, 0)
        tl.store(part_ranks + index * k + i, best)
        ranks = tl.where(ranks == best, LOWEST, ranks)


@triton.jit
def merge_topk_kernel(
    part_ranks,  # [N, parts, k]
    part_sums,  # [N, parts, 2]
    token_ids,  # [vocabulary]
    ids,  # [N, k]
    logprobs,  # [N, k]
    parts,
    k,
    PARTS: tl.constexpr,
    RANKS: tl.constexpr,
    HAS_IDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    sums = part_sums + (row * parts + part) * 2
    tops = tl.load(sums, mask=part < parts, other=float("-inf"))
    top = tl.max(tops, 0)
    total = tl.sum(tl.load(sums + 1, mask=part < parts, other=0.0) * tl.exp(tops - top), 0)
    log_sum = tl.log(total)
    i = tl.arange(0, RANKS)
    ranks = tl.load(part_ranks + row * parts * k + i, mask=i < parts * k, other=LOWEST)
    for i in range(k):
        best = tl.max(ranks, 0)
        ranks = tl.where(ranks == best, LOWEST, ranks)
        token = index_of(best)
        if HAS_IDS:
            token = tl.load(token_ids + token)
        tl.store(ids + row * k + i, token)
        tl.store(logprobs + row * k + i, (value_of(best) - top) - log_sum)


def draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if k > MOST_TOKENS:
        raise ValueError(f"k: expected 1 .. {MOST_TOKENS} on a GPU, got {k}")
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, PART)
    ids = logits.new_empty(rows, k, dtype=torch.int64)
    logprobs = logits.new_empty(rows, k)
    ranks = logits.new_empty(rows, parts, k, dtype=torch.int64)
    sums = logits.new_empty(rows, parts, 2)
    if rows:
        has_ids = token_ids is not None
        token_ids = token_ids if has_ids else seed
        # Without fused multiply-add the noise, and x + T * noise, are rounded as specified.
        part_topk_kernel[(rows, parts)](
            *(logits, temperature, seed, position, token_ids, ranks, sums, vocabulary, k),
            PART=PART,
            HAS_IDS=has_ids,
            enable_fp_fusion=False,
        )
        merge_topk_kernel[(rows,)](
            *(ranks, sums, token_ids, ids, logprobs, parts, k),
            PARTS=triton.next_power_of_2(parts),
            RANKS=triton.next_power_of_2(parts * k),
            HAS_IDS=has_ids,
        )
    return ids, logprobs
