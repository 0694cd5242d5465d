"""The CUDA C++ implementations: raw pointers and the current stream, no synchronisation."""

import torch
from torch import Tensor

from specedge_kernels import _cuda


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    layers, _, _, page_size, heads, dim = kv.shape
    size = kv.element_size()
    strides_bytes = [stride * size for stride in kv.stride()[:5]]
    with torch.cuda.device(kv.device):
        _cuda.compact_kv(
            kv.data_ptr(),
            layers,
            page_size,
            heads,
            dim * size,
            _word_bytes(kv.data_ptr(), dim * size, *strides_bytes),
            *strides_bytes,
            page_table.data_ptr(),
            page_table.shape[1],
            prefix_lens.data_ptr(),
            path.data_ptr(),
            accepted_lens.data_ptr(),
            path.shape[0],
            path.shape[1],
            torch.cuda.current_stream().cuda_stream,
        )


def _word_bytes(*extents: int) -> int:
    """The widest access that every address of the cache allows."""
    return next(size for size in (16, 8, 4, 2, 1) if all(x % size == 0 for x in extents))
