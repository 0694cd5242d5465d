"""The experts of each row on a GPU: a program takes one row, so batches do not matter."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def route_kernel(
    logits,  # [N, n_experts]
    bias,  # [n_experts]; not read unless HAS_BIAS
    experts,  # [N, k] i32
    weights,  # [N, k] f32
    scale,
    n_experts,
    k,
    n_groups,
    top_groups,
    group_best,
    SIGMOID: tl.constexpr,
    NORMALISE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    GROUPS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, EXPERTS)
    is_open = e < n_experts
    x = tl.load(logits + row * n_experts + e, mask=is_open, other=float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(x)
    else:
        exps = tl.exp(x - tl.max(x, 0))
        scores = exps / tl.sum(exps, 0)
    ranks = x
    if HAS_BIAS:
        ranks = scores + tl.load(bias + e, mask=is_open, other=0)
    elif GROUPED:
        ranks = scores
    ranks = tl.where(ranks == ranks, ranks, float("-inf"))
    if GROUPED:
        g, size = tl.arange(0, GROUPS), n_experts // n_groups
        group_ranks = tl.full([GROUPS], float("-inf"), tl.float32)
        for group in range(n_groups):
            left, best_sum = is_open & (e // size == group), 0.0
            for _ in range(group_best):
                best = best_open(ranks, left, e)
                best_sum += tl.sum(tl.where(e == best, ranks, 0.0), 0)
                left = left & (e != best)
            group_ranks = tl.where(g == group, best_sum, group_ranks)
        closed, within = g < n_groups, e < 0
        for _ in range(top_groups):
            best = best_open(group_ranks, closed, g)
            within = within | (e // size == best)
            closed = closed & (g != best)
        is_open = is_open & within
    place = tl.arange(0, CHOSEN)
    chosen, total = tl.zeros([CHOSEN], tl.float32), 0.0
    for j in range(k):
        best = best_open(ranks, is_open, e)
        is_open = is_open & (e != best)
        score = tl.sum(tl.where(e == best, scores, 0.0), 0)
        total += score
        chosen = tl.where(place == j, score, chosen)
        tl.store(experts + row * k + j, best)
    if NORMALISE:
        chosen = chosen / total
    tl.store(weights + row * k + place, chosen * scale, mask=place < k)


@triton.jit
def best_open(ranks, is_open, index):
    """The index of the largest open rank, the lowest of equal ones; no rank is NaN."""
    best = tl.max(tl.where(is_open, ranks, float("-inf")), 0)
    return tl.min(tl.where(is_open & (ranks == best), index, 1 << 30), 0)


def route(
    logits: Tensor,
    k: int,
    scoring: str,
    normalise: bool,
    scale: float,
    bias: Tensor | None,
    n_groups: int,
    top_groups: int,
    group_best: int,
) -> tuple[Tensor, Tensor]:
    rows, n_experts = logits.shape
    experts, weights = logits.new_empty(rows, k, dtype=torch.int32), logits.new_empty(rows, k)
    if rows:
        route_kernel[(rows,)](
            *(logits, logits if bias is None else bias, experts, weights, scale),
            *(n_experts, k, n_groups, top_groups, group_best),
            SIGMOID=scoring == "sigmoid",
            NORMALISE=normalise,
            HAS_BIAS=bias is not None,
            GROUPED=n_groups > 1,
            EXPERTS=triton.next_power_of_2(n_experts),
            CHOSEN=triton.next_power_of_2(k),
            GROUPS=triton.next_power_of_2(n_groups),
            num_warps=1 if n_experts <= 256 else 4,
        )
    return experts, weights
