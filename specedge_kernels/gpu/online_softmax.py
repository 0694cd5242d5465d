"""The running softmax of attention (FlashAttention, arXiv:2205.14135, algorithm 1), in base 2.

Scores are kept as they are multiplied; `unit`, more than 0, makes them powers of two. Knows no
pages, no trees and no order of tiles.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap)."""
    return softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)


@triton.jit
def absorb(scores, unit, top, total, MASKED: tl.constexpr, EXACT: tl.constexpr):
    """One tile: its weights, what they leave of earlier ones, the new top score and total.

    A tile of which a row sees nothing (all scores -inf) leaves the row's bits as they are. total:
    [X, parts], whose sum counts. The weight of the top score is 1, if EXACT to the last bit of
    float32, else to the last of 16: the score is not rounded before its maximum is subtracted, as
    that has been.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    origin = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    shrink = tl.exp2((top - origin) * unit)
    if EXACT:
        weights = tl.exp2((scores - origin[:, None]) * unit)
    else:
        weights = tl.exp2(tl.fma(scores, unit, -(origin * unit)[:, None]))
    EACH: tl.constexpr = weights.shape[1] // total.shape[1]
    parts = tl.reshape(weights, (weights.shape[0], EACH, total.shape[1]))
    return weights, shrink, new_top, total * shrink[:, None] + tl.sum(parts, 1)


@triton.jit
def add_values(weights, values, shrink, sums):
    """The weighted values of a tile, added to those of earlier ones."""
    return tl.dot(
        weights.to(values.dtype), values, sums * shrink[:, None], input_precision="tf32x3"
    )


@triton.jit
def beside_sink(lse, sink):
    """What a sink leaves of each row's result, and the log-sum of both. All [X], in base 2."""
    top = tl.maximum(lse, sink)
    origin = tl.where(top == float("-inf"), 0.0, top)
    seen = tl.exp2(lse - origin)
    total = seen + tl.exp2(sink - origin)
    total = tl.where(total == 0, 1.0, total)
    return seen / total, top + tl.log2(total)
