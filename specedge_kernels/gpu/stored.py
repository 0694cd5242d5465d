"""How numbers enter the KV cache on a GPU: scaled, rounded to nearest even, float8 saturated.

Knows nothing of places: callers compute pointers. Float8 e4m3 is written by bit arithmetic, which
cards older than sm_89 have too and the interpreter runs exactly; the cache is then seen as bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def as_stored(cache: Tensor) -> Tensor:
    """The cache as kernels write it: float8 as its bytes."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def rescales(*scales: float | Tensor | None) -> bool:
    """Whether any of the scales changes anything."""
    return any(isinstance(scale, Tensor) or scale not in (1, None) for scale in scales)


@triton.jit
def store_scaled(pointer, x, scale, mask, SCALED: tl.constexpr):
    """x / scale, float32, in the type of the cache. Float32 holds every half: one rounding."""
    if SCALED:
        x = tl.div_rn(x, scale)
    if pointer.dtype.element_ty == tl.uint8:
        tl.store(pointer, e4m3_bits(x), mask=mask)
    else:
        tl.store(pointer, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def e4m3_bits(x):
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Below 2^-6 numbers are multiples of 2^-9, to which adding 2^14 rounds.
    small = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) & 0x7F
    normal = (magnitude - 0x3C000000 + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(magnitude >= 0x43E00000, 0x7E, code)  # 448 or more
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)  # NaN
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
