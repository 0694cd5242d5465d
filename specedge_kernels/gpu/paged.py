"""Reads tokens of one KV head through one request's pages. Knows nothing of who sees them."""

import triton
import triton.language as tl


@triton.jit
def load_pages(table, slots, used, S: tl.constexpr):
    """Page ids of slots [X] of the request whose row of the page table this is; 0 if not used."""
    return tl.load(table + slots // S, mask=used, other=0)


@triton.jit
def load_tokens(
    cache,
    pages,
    slots,
    used,
    d,
    D: tl.constexpr,
    S: tl.constexpr,
    DOT: tl.constexpr,
    NATIVE_E4M3: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Vectors [X, d] of `slots` [X] that lie in `pages`; if MASKED, zero for those not used.

    cache: a head's first vector, and the strides of pages and tokens.
    """
    base, page_stride, token_stride = cache
    token = pages.to(tl.int64) * page_stride + (slots % S).to(tl.int64) * token_stride
    stored = load_vectors(base + token[:, None] + d[None, :], used, d, D, MASKED)
    if stored.dtype != tl.uint8:
        return stored.to(DOT)
    elif NATIVE_E4M3:
        # By way of float32: from float16 to bfloat16 sm_90 has one slow instruction.
        return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32).to(DOT)
    else:
        return float_of_e4m3(stored).to(DOT)


@triton.jit
def float_of_e4m3(byte):
    """Float8 e4m3 by bit arithmetic, which every card has. The one NaN comes out as 480."""
    # As float16 the bits mean 2^-8 of the value.
    bits = (byte.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def load_vectors(pointers, used, d, D: tl.constexpr, MASKED: tl.constexpr):
    """Vectors of D elements, zero beyond D; if MASKED only those in use, the others zero."""
    if MASKED:
        return tl.load(pointers, mask=used[:, None] & (d < D)[None, :], other=0)
    elif d.shape[0] > D:
        return tl.load(pointers, mask=(d < D)[None, :], other=0)
    else:
        return tl.load(pointers)
