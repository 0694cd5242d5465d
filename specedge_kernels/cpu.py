"""The CPU implementations: tensors in, raw pointers to the C++ of csrc/, tensors out.

Metadata was checked by `ops.py`; values (page ids, parents, offsets) are checked by the C++, which
raises ValueError before it writes anything.
"""

import torch
from torch import Tensor

from specedge_kernels import _cpu

DTYPES = {
    torch.float32: _cpu.Dtype.float32,
    torch.bfloat16: _cpu.Dtype.bfloat16,
    torch.float16: _cpu.Dtype.float16,
}


def build_tree(parents: Tensor, offsets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    rows = parents.shape[0]
    ancestors = parents.new_empty(rows, words, dtype=torch.int64)
    depth = torch.empty_like(parents)
    _cpu.build_tree(
        parents.data_ptr(),
        offsets.data_ptr(),
        offsets.shape[0] - 1,
        rows,
        words,
        ancestors.data_ptr(),
        depth.data_ptr(),
    )
    return ancestors, depth


def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    prefix_lens: Tensor,
    n_nodes: Tensor,
    offsets: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = -1,
) -> Tensor:
    out = torch.empty_like(q)
    _cpu.tree_attention(
        q.data_ptr(),
        DTYPES[q.dtype],
        q.shape[1],
        _cache(k_cache),
        _cache(v_cache),
        prefix_lens.shape[0],
        q.shape[0],
        ancestors.shape[1],
        page_table.shape[1],
        page_table.data_ptr(),
        prefix_lens.data_ptr(),
        n_nodes.data_ptr(),
        offsets.data_ptr(),
        ancestors.data_ptr(),
        depth.data_ptr(),
        scale,
        softcap,
        window,
        out.data_ptr(),
    )
    return out


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _cpu.append_kv(
        k.data_ptr(),
        v.data_ptr(),
        DTYPES[k.dtype],
        _cache(k_cache),
        _cache(v_cache),
        slots.data_ptr(),
        slots.shape[0],
    )


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    layers, _, pages, page_size, heads, dim = kv.shape
    size = kv.element_size()
    planes = _cpu.Planes(
        kv.data_ptr(),
        layers,
        pages,
        page_size,
        heads,
        dim * size,
        *(stride * size for stride in kv.stride()[:5]),
    )
    _cpu.compact_kv(
        planes,
        page_table.data_ptr(),
        page_table.shape[1],
        prefix_lens.data_ptr(),
        path.data_ptr(),
        accepted_lens.data_ptr(),
        path.shape[0],
        path.shape[1],
    )


def verify(
    tokens: Tensor, ancestors: Tensor, offsets: Tensor, target: Tensor, max_path: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch = offsets.shape[0] - 1
    path = offsets.new_empty(batch, max_path)
    accepted_lens = offsets.new_empty(batch)
    bonus = target.new_empty(batch)
    _cpu.verify(
        tokens.data_ptr(),
        ancestors.data_ptr(),
        offsets.data_ptr(),
        target.data_ptr(),
        batch,
        tokens.shape[0],
        ancestors.shape[1],
        max_path,
        path.data_ptr(),
        accepted_lens.data_ptr(),
        bonus.data_ptr(),
    )
    return path, accepted_lens, bonus


def target_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    rows, vocabulary = logits.shape
    out = logits.new_empty(rows, dtype=torch.int64)
    _cpu.target_tokens(
        logits.data_ptr(),
        rows,
        vocabulary,
        temperature.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        min_p.data_ptr(),
        seed.data_ptr(),
        position.data_ptr(),
        out.data_ptr(),
    )
    return out


def draft_topk(
    logits: Tensor,
    k: int,
    temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    token_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rows, vocabulary = logits.shape
    ids = logits.new_empty(rows, k, dtype=torch.int64)
    logprobs = logits.new_empty(rows, k)
    _cpu.draft_topk(
        logits.data_ptr(),
        rows,
        vocabulary,
        k,
        temperature.data_ptr(),
        seed.data_ptr(),
        position.data_ptr(),
        0 if token_ids is None else token_ids.data_ptr(),
        ids.data_ptr(),
        logprobs.data_ptr(),
    )
    return ids, logprobs


def linear(x: Tensor, panels: Tensor, out_features: int) -> Tensor:
    rows, inputs = x.shape
    out = x.new_empty(rows, out_features)
    _cpu.linear(
        x.data_ptr(),
        panels.data_ptr(),
        DTYPES[panels.dtype],
        rows,
        inputs,
        out_features,
        out.data_ptr(),
    )
    return out


def _cache(cache: Tensor) -> _cpu.Cache:
    """cache [P, S, Hk, D] as C++ sees it."""
    return _cpu.Cache(cache.data_ptr(), DTYPES[cache.dtype], *cache.shape, *cache.stride()[:3])
