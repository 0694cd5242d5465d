"""Norm of queries and keys, rotary position and append on a GPU: one launch from the projections.

A program takes some heads of one row: what a row becomes does not depend on its batch. Everything
between the load and the one rounding at the end is float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.stored import as_stored, rescales, store_scaled

BLOCK_ELEMENTS = 1024  # of each half of the heads of a program


@triton.jit
def rope_append_kv_kernel(
    qkv,  # [N, Q_HEADS + 2 * KV_HEADS, 2 * HALF]
    qk_norm,  # [Q_HEADS + KV_HEADS, 2 * HALF]
    cos,  # [C, 2 * HALF]
    sin,  # [C, 2 * HALF]
    positions,  # [N]
    q,  # [N, Q_HEADS, 2 * HALF]
    k_cache,  # [P, S, KV_HEADS, 2 * HALF]
    v_cache,  # [P, S, KV_HEADS, 2 * HALF]
    slots,  # [N]
    k_scales,  # [KV_HEADS] or None
    v_scales,  # [KV_HEADS] or None
    page_size,
    k_page,
    k_token,
    k_head,
    v_page,
    v_token,
    v_head,
    eps,
    k_scale,
    v_scale,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    d = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < Q_HEADS + 2 * KV_HEADS) & (d < HALF)
    turning = (head < Q_HEADS + KV_HEADS) & (d < HALF)
    element = head * (2 * HALF) + d
    x = qkv + row * ((Q_HEADS + 2 * KV_HEADS) * 2 * HALF) + element
    low = tl.load(x, mask=inside, other=0).to(tl.float32)
    high = tl.load(x + HALF, mask=inside, other=0).to(tl.float32)

    qk_low, qk_high = low, high
    if HAS_NORM:
        squares = tl.sum(low * low + high * high, 1)[:, None]
        scale = tl.rsqrt(squares / (2 * HALF) + eps)
        qk_low *= scale * tl.load(qk_norm + element, mask=turning, other=0).to(tl.float32)
        qk_high *= scale * tl.load(qk_norm + element + HALF, mask=turning, other=0).to(tl.float32)
    angle = tl.load(positions + row) * (2 * HALF) + d
    cos_low, sin_low = tl.load(cos + angle, mask=d < HALF), tl.load(sin + angle, mask=d < HALF)
    angle += HALF
    cos_high, sin_high = tl.load(cos + angle, mask=d < HALF), tl.load(sin + angle, mask=d < HALF)
    turned_low = qk_low * cos_low + qk_high * sin_low
    turned_high = qk_high * cos_high + qk_low * sin_high

    is_query = turning & (head < Q_HEADS)
    out = q + row * (Q_HEADS * 2 * HALF) + element
    tl.store(out, turned_low.to(q.dtype.element_ty), mask=is_query)
    tl.store(out + HALF, turned_high.to(q.dtype.element_ty), mask=is_query)

    slot = tl.load(slots + row)
    if slot >= 0:
        page, token = slot // page_size, slot % page_size
        k_cache += page * k_page + token * k_token
        v_cache += page * v_page + token * v_token
        is_key = turning & (head >= Q_HEADS)
        k_index, v_index = head - Q_HEADS, head - Q_HEADS - KV_HEADS
        key_scale, value_scale = k_scale, v_scale
        if k_scales is not None:
            key_scale = tl.load(k_scales + k_index, mask=is_key, other=1)
        key = k_cache + k_index.to(tl.int64) * k_head + d
        store_scaled(key, turned_low, key_scale, is_key, SCALED)
        store_scaled(key + HALF, turned_high, key_scale, is_key, SCALED)
        is_value = inside & (head >= Q_HEADS + KV_HEADS)
        if v_scales is not None:
            value_scale = tl.load(v_scales + v_index, mask=is_value, other=1)
        value = v_cache + v_index.to(tl.int64) * v_head + d
        store_scaled(value, low, value_scale, is_value, SCALED)
        store_scaled(value + HALF, high, value_scale, is_value, SCALED)


def rope_append_kv(
    qkv: Tensor,
    qk_norm: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
) -> Tensor:
    rows, all_heads, dim = qkv.shape
    heads = k_cache.shape[2]
    q = qkv.new_empty(rows, all_heads - 2 * heads, dim)
    if qkv.numel():
        half = triton.next_power_of_2(dim // 2)
        block = min(max(1, BLOCK_ELEMENTS // half), triton.next_power_of_2(all_heads))
        rope_append_kv_kernel[(rows, triton.cdiv(all_heads, block))](
            qkv,
            qkv if qk_norm is None else qk_norm,
            cos,
            sin,
            positions,
            q,
            as_stored(k_cache),
            as_stored(v_cache),
            slots,
            k_scales,
            v_scales,
            k_cache.shape[1],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            eps,
            k_scale,
            v_scale,
            Q_HEADS=q.shape[1],
            KV_HEADS=heads,
            HALF=dim // 2,
            HAS_NORM=qk_norm is not None,
            SCALED=rescales(k_scale, k_scales, v_scale, v_scales),
            BLOCK_HEADS=block,
            BLOCK_HALF=half,
        )
    return q
