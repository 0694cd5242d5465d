"""Writes new keys and values into the paged cache on a GPU: one program per row and block.

Knows neither pages' owners nor what the rows mean.
"""

import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.stored import as_stored, store_scaled

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
    k_scale,
    v_scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SCALED: tl.constexpr,
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
        key = tl.load(k + source, mask=inside).to(tl.float32)
        value = tl.load(v + source, mask=inside).to(tl.float32)
        store_scaled(k_target, key, k_scale, inside, SCALED)
        store_scaled(v_target, value, v_scale, inside, SCALED)


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    rows, heads, dim = k.shape
    if k.numel():
        block = min(BLOCK_ELEMENTS, triton.next_power_of_2(heads * dim))
        append_kv_kernel[(rows, triton.cdiv(heads * dim, block))](
            k,
            v,
            as_stored(k_cache),
            as_stored(v_cache),
            slots,
            k_cache.shape[1],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            k_scale,
            v_scale,
            HEADS=heads,
            D=dim,
            SCALED=(k_scale, v_scale) != (1, 1),
            BLOCK=block,
        )
