"""Writes new keys and values into the paged cache on a GPU: one program per row and block.

Knows neither pages' owners nor what the rows mean.
"""

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.stored import as_stored, rescales, store_scaled

BLOCK_ELEMENTS = 1024


@triton.jit
def append_kv_kernel(
    k,  # [N, HEADS, D]
    v,  # [N, HEADS, DV]
    k_cache,  # [P, S, HEADS, D]
    v_cache,  # [P, S, HEADS, DV]
    slots,  # [N]
    k_scales,  # [HEADS] or None
    v_scales,  # [HEADS] or None
    page_size,
    k_page,
    k_token,
    k_head,
    v_page,
    v_token,
    v_head,
    k_scale,
    v_scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        page, token = slot // page_size, slot % page_size
        key = k_cache + page * k_page + token * k_token
        value = v_cache + page * v_page + token * v_token
        k_row, v_row = k + row * (HEADS * D), v + row * (HEADS * DV)
        append_heads(k_row, key, k_head, k_scale, k_scales, HEADS, D, SCALED, BLOCK)
        if DV > 0:
            append_heads(v_row, value, v_head, v_scale, v_scales, HEADS, DV, SCALED, BLOCK)


@triton.jit
def append_heads(
    heads,
    token,
    head_stride,
    scale,
    scales,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This program's block of heads [HEADS, D], over their scale, into the cache at `token`."""
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < HEADS * D
    head = element // D
    x = tl.load(heads + element, mask=inside).to(tl.float32)
    if scales is not None:
        scale = tl.load(scales + head, mask=inside, other=1)
    target = token + head.to(tl.int64) * head_stride + element % D
    store_scaled(target, x, scale, inside, SCALED)


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
) -> None:
    rows, heads, dim = k.shape
    width = heads * max(dim, v.shape[2])
    if rows and width:
        block = min(BLOCK_ELEMENTS, triton.next_power_of_2(width))
        append_kv_kernel[(rows, triton.cdiv(width, block))](
            k,
            v,
            as_stored(k_cache),
            as_stored(v_cache),
            slots,
            k_scales,
            v_scales,
            k_cache.shape[1],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            k_scale,
            v_scale,
            HEADS=heads,
            D=dim,
            DV=v.shape[2],
            SCALED=rescales(k_scale, k_scales, v_scale, v_scales),
            BLOCK=block,
        )
