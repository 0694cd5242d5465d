"""Writes new keys and values into the paged cache on a GPU: one program per row and block.

Knows neither pages' owners nor what the rows mean.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_ELEMENTS = 1024


@triton.jit
def append_kv_kernel(
    k,  # [N, HEADS, D]
    v,  # [N, HEADS, D]
    k_cache,  # [P, S, HEADS, D]
    v_cache,  # [P, S, HEADS, D]
    slots,  # [N]
    page_size,
    k_page,
    k_token,
    k_head,
    v_page,
    v_token,
    v_head,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        page, token = slot // page_size, slot % page_size
        element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = element < HEADS * D
        head, d = element // D, element % D
        source = row * (HEADS * D) + element
        k_target = k_cache + page * k_page + token * k_token + head.to(tl.int64) * k_head + d
        v_target = v_cache + page * v_page + token * v_token + head.to(tl.int64) * v_head + d
        # By way of float32, which holds every half exactly: one rounding, to nearest even.
        key = tl.load(k + source, mask=inside).to(tl.float32)
        value = tl.load(v + source, mask=inside).to(tl.float32)
        tl.store(k_target, key.to(k_cache.dtype.element_ty), mask=inside)
        tl.store(v_target, value.to(v_cache.dtype.element_ty), mask=inside)


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    rows, heads, dim = k.shape
    if k.numel():
        block = min(BLOCK_ELEMENTS, triton.next_power_of_2(heads * dim))
        append_kv_kernel[(rows, triton.cdiv(heads * dim, block))](
            k,
            v,
            k_cache,
            v_cache,
            slots,
            k_cache.shape[1],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            HEADS=heads,
            D=dim,
            BLOCK=block,
        )
