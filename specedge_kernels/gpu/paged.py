"""Reads tokens of one KV head through one request's pages. Knows nothing of who sees them."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

MOST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Width:
    """The numbers of a head, as one or two tiles: `block` of them, then `rest`, powers of two."""

    numbers: int
    block: int
    rest: int  # 0 if there is no second tile


def width_of(numbers: int) -> Width:
    """80 is 64 and 16, 576 is 512 and 64; 120 is 128, which is no more than 64 and 64."""
    whole = max(16, triton.next_power_of_2(numbers))
    rest = max(16, triton.next_power_of_2(numbers - whole // 2))
    if numbers == whole or rest >= whole // 2:
        return Width(numbers, whole, 0)
    return Width(numbers, whole // 2, rest)


def are_parts(v_cache: Tensor, k_cache: Tensor) -> bool:
    """Whether the tiles of the values are the first ones of the keys, in the same memory."""
    start = v_cache.storage_offset() == k_cache.storage_offset()
    alike = v_cache.stride() == k_cache.stride() and v_cache.dtype == k_cache.dtype
    # Not by their addresses: tensors without numbers have none.
    same = v_cache.untyped_storage() is k_cache.untyped_storage()
    keys, values = k_cache.shape[3], v_cache.shape[3]
    return start and alike and same and values in (width_of(keys).block, keys)


def offset_type(*caches: Tensor) -> tl.dtype:
    """Of the distance between any two numbers of a head."""
    farthest = max(
        sum((cache.shape[i] - 1) * cache.stride(i) for i in (0, 1, 3)) for cache in caches
    )
    return tl.int64 if farthest > MOST_INT32 else tl.int32


@triton.jit
def load_pages(table, slots, used, S: tl.constexpr):
    """Page ids of slots [X] of the request whose row of the page table this is; 0 if not used."""
    # Unsigned, a division by a power of two is a shift.
    return tl.load(table + slots.to(tl.uint32) // S, mask=used, other=0)


@triton.jit
def load_tokens(
    cache,
    pages,
    slots,
    used,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    S: tl.constexpr,
    DOT: tl.constexpr,
    NATIVE_E4M3: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of the vectors of `slots` [X], which lie in `pages`.

    If MASKED, zero for those not used. cache: a head's first vector, and the strides of pages and
    tokens, in the type of `offset_type`.
    """
    base, page_stride, token_stride = cache
    place = (slots.to(tl.uint32) % S).to(tl.int32)
    token = pages * page_stride + place * token_stride
    # Read once, or at once by neighbours: what stays in the L2 meanwhile is read again later.
    stored = load_vectors(base, token[:, None], used, WIDTH, REST, MASKED, "evict_first")
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
def load_vectors(
    base,
    starts,
    used,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    MASKED: tl.constexpr,
    EVICTION: tl.constexpr = "",
):
    """The first tile, or the REST, of the vectors that begin at `starts` [X, 1] behind `base`.

    Zero beyond the width; if MASKED only those in use, the others zero. EVICTION: when they leave
    the L2, as `tl.load` takes it.
    """
    d = numbers_of(WIDTH, REST)
    # Offsets first, which take half the registers of pointers.
    pointers = base + (starts + d)
    if MASKED:
        mask = used[:, None] & (d < WIDTH.numbers)
        return tl.load(pointers, mask=mask, other=0, eviction_policy=EVICTION)
    elif WIDTH.block + WIDTH.rest > WIDTH.numbers:
        return tl.load(pointers, mask=d < WIDTH.numbers, other=0, eviction_policy=EVICTION)
    else:
        return tl.load(pointers, eviction_policy=EVICTION)


@triton.jit
def store_vectors(starts, numbers, used, WIDTH: tl.constexpr, REST: tl.constexpr):
    """The first tile, or the REST, of the vectors in use."""
    d = numbers_of(WIDTH, REST)
    tl.store(starts + d, numbers, mask=used[:, None] & (d < WIDTH.numbers))


@triton.jit
def numbers_of(WIDTH: tl.constexpr, REST: tl.constexpr):
    """Which numbers of a vector the first tile has, or the REST: [1, size]."""
    if REST:
        return WIDTH.block + tl.arange(0, WIDTH.rest)[None, :]
    else:
        return tl.arange(0, WIDTH.block)[None, :]
