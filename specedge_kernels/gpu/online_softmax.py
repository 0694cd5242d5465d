"""The running softmax of attention (FlashAttention, arXiv:2205.14135, algorithm 1), in base 2.

Knows no pages, no trees and no order of tiles.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scaled(products, scale, softcap, SOFTCAP: tl.constexpr):
    """Products of queries and keys [BLOCK_ROWS, BLOCK_KEYS] f32 -> scores in base 2."""
    if SOFTCAP:  # softcap * tanh(x / softcap)
        capped = 2 * tl.sigmoid(2 * (products * scale) / softcap) - 1
        return capped * (softcap * LOG2_E)
    else:
        return products * (scale * LOG2_E)


@triton.jit
def absorb(scores, top, total, MASKED: tl.constexpr):
    """One tile: its weights, what they leave of earlier ones, the new top score and total.

    A tile of which a row sees nothing (all scores -inf) leaves the row's bits as they are.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    origin = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    shrink = tl.exp2(top - origin)
    weights = tl.exp2(scores - origin[:, None])
    return weights, shrink, new_top, total * shrink + tl.sum(weights, 1)


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
