"""Log-probabilities of a token and of the best n of each row, on a GPU, in two launches.

The launches are those of `draft_topk` without noise: the best of each part of a row and the sum of
its exponentials, then of all parts in their order. Launch 2 also looks up the given token. Knows
no trees.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.draft_topk import LOWEST, MOST_TOKENS, PART
from specedge_kernels.gpu.noise import index_of, ranked, value_of


@triton.jit(do_not_specialize=["n"])
def part_best_kernel(
    logits,  # [N, vocabulary]
    part_ranks,  # [N, parts, n] i64
    part_sums,  # [N, parts, 2] f32: the largest value, NaN if there is one; sum of exp(x - largest)
    vocabulary,
    n,
    PART: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    inside = column < vocabulary
    x = tl.load(logits + row * vocabulary + column, mask=inside, other=float("-inf"))
    broken = tl.max((x != x).to(tl.int32), 0) > 0
    top = tl.max(tl.where(x != x, float("-inf"), x), 0)
    shift = tl.where(top > float("-inf"), top, 0.0)
    index = row * tl.num_programs(1) + part
    tl.store(part_sums + index * 2, tl.where(broken, float("nan"), top))
    tl.store(part_sums + index * 2 + 1, tl.sum(tl.exp(x - shift), 0))
    ranks = tl.where(inside, ranked(x, column), LOWEST)
    for i in range(n):
        best = tl.max(ranks, 0)
        tl.store(part_ranks + index * n + i, best)
        ranks = tl.where(ranks == best, LOWEST, ranks)


@triton.jit(do_not_specialize=["n"])
def merge_best_kernel(
    logits,  # [N, vocabulary]
    tokens,  # [N]
    part_ranks,  # [N, parts, n]
    part_sums,  # [N, parts, 2]
    logprobs,  # [N]
    top_tokens,  # [N, n]
    top_logprobs,  # [N, n]
    vocabulary,
    parts,
    n,
    PARTS: tl.constexpr,
    RANKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    sums = part_sums + (row * parts + part) * 2
    tops = tl.load(sums, mask=part < parts, other=float("-inf"))
    top = tl.max(tl.where(tops != tops, float("inf"), tops), 0)
    good = tl.abs(top) < float("inf")
    total = tl.sum(tl.load(sums + 1, mask=part < parts, other=0.0) * tl.exp(tops - top), 0)
    log_sum = tl.where(good, tl.log(total), float("nan"))
    token = tl.load(tokens + row)
    x = tl.load(logits + row * vocabulary + token, mask=token >= 0, other=float("nan"))
    tl.store(logprobs + row, (x - top) - log_sum)
    i = tl.arange(0, RANKS)
    ranks = tl.load(part_ranks + row * parts * n + i, mask=i < parts * n, other=LOWEST)
    for i in range(n):
        best = tl.max(ranks, 0)
        ranks = tl.where(ranks == best, LOWEST, ranks)
        tl.store(top_tokens + row * n + i, tl.where(good, index_of(best), -1))
        tl.store(top_logprobs + row * n + i, (value_of(best) - top) - log_sum)


def token_logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    if n > MOST_TOKENS:
        raise ValueError(f"n: expected 0 .. {MOST_TOKENS} on a GPU, got {n}")
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, PART)
    logprobs = logits.new_empty(rows)
    top_tokens, top_logprobs = tokens.new_empty(rows, n), logits.new_empty(rows, n)
    ranks = logits.new_empty(rows, parts, n, dtype=torch.int64)
    sums = logits.new_empty(rows, parts, 2)
    if rows:
        part_best_kernel[(rows, parts)](logits, ranks, sums, vocabulary, n, PART=PART)
        merge_best_kernel[(rows,)](
            *(logits, tokens, ranks, sums, logprobs, top_tokens, top_logprobs),
            *(vocabulary, parts, n),
            PARTS=triton.next_power_of_2(parts),
            RANKS=triton.next_power_of_2(max(parts * n, 1)),
        )
    return logprobs, top_tokens, top_logprobs
