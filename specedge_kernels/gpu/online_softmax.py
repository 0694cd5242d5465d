"""The running softmax of attention (FlashAttention, arXiv:2205.14135, algorithm 1), in base 2.

Knows no pages, no trees and no order of tiles.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def score(queries, keys, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores [BLOCK_ROWS, BLOCK_KEYS] f32 in base 2."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3")
    if SOFTCAP:  # softcap * tanh(x / softcap)
        capped = 2 * tl.sigmoid(2 * (scores * scale) / softcap) - 1
        return capped * (softcap * LOG2_E)
    else:
        return scores * (scale * LOG2_E)


@triton.jit
def absorb(scores, values, top, total, sums, MASKED: tl.constexpr):
    """One tile: the largest score so far, the sum of weights, the weighted values.

    A tile of which a row sees nothing (all scores -inf) leaves the row's bits as they are.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    origin = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    shrink = tl.exp2(top - origin)
    weights = tl.exp2(scores - origin[:, None])
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(
        weights.to(values.dtype), values, sums * shrink[:, None], input_precision="tf32x3"
    )
    return new_top, total, sums
