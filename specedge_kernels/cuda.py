"""The CUDA C++ implementations: raw pointers and the current stream, no synchronisation."""

import torch
from torch import Tensor

from specedge_kernels import _cuda
from specedge_kernels.cpu import DTYPES, address_of


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
    with torch.cuda.device(k.device):
        _cuda.append_kv(
            k.data_ptr(),
            v.data_ptr(),
            int(DTYPES[k.dtype]),
            _cache(k_cache),
            _cache(v_cache),
            slots.data_ptr(),
            slots.shape[0],
            k_scale,
            address_of(k_scales),
            v_scale,
            address_of(v_scales),
            torch.cuda.current_stream().cuda_stream,
        )


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
    q = qkv.new_empty(rows, all_heads - 2 * k_cache.shape[2], dim)
    norm = qkv if qk_norm is None else qk_norm
    with torch.cuda.device(qkv.device):
        _cuda.rope_append_kv(
            qkv.data_ptr(),
            int(DTYPES[qkv.dtype]),
            q.shape[1],
            address_of(qk_norm),
            int(DTYPES[norm.dtype]),
            eps,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[0],
            positions.data_ptr(),
            _cache(k_cache),
            _cache(v_cache),
            slots.data_ptr(),
            rows,
            k_scale,
            address_of(k_scales),
            v_scale,
            address_of(v_scales),
            q.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    return q


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    layers, parts, _, page_size, heads, dim = kv.shape
    size = kv.element_size()
    layer, part, page, token, head = (stride * size for stride in kv.stride()[:5])
    with torch.cuda.device(kv.device):
        _cuda.compact_kv(
            kv.data_ptr(),
            layers,
            parts,
            page_size,
            heads,
            dim * size,
            _word_bytes(kv.data_ptr(), dim * size, layer, part, page, token, head),
            *(layer, part, page, token, head),
            page_table.data_ptr(),
            page_table.shape[1],
            prefix_lens.data_ptr(),
            path.data_ptr(),
            accepted_lens.data_ptr(),
            path.shape[0],
            path.shape[1],
            torch.cuda.current_stream().cuda_stream,
        )


def _cache(cache: Tensor) -> _cuda.Cache:
    """cache [P, S, Hk, D] as C++ sees it."""
    return _cuda.Cache(
        cache.data_ptr(), int(DTYPES[cache.dtype]), *cache.shape, *cache.stride()[:3]
    )


def _word_bytes(*extents: int) -> int:
    """The widest access that every address of the cache allows."""
    return next(size for size in (16, 8, 4, 2, 1) if all(x % size == 0 for x in extents))
