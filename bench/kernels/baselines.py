"""Other ways to compute tree attention, each bound to one batch and called again and again.

Whatever a way needs beforehand is not timed: contiguous keys and values gathered from the pages,
dense masks, block masks, plans. That favours them all. Trees are of one size, of 64 nodes at
most on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from bench.kernels.attention import Batch

WORKSPACE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Way:
    name: str
    bind: Callable[[Batch], Callable[[], Tensor]]
    optional: bool = False


def ways(device: torch.device) -> list[Way]:
    """Those that can run on a device."""
    sdpa = Way("sdpa, dense mask", bind_sdpa)
    if device.type == "cpu":
        return [sdpa]
    from bench.kernels.schedules import per_query_head, sixteen_rows

    return [
        sdpa,
        Way("vLLM-shaped", lambda batch: lambda: sixteen_rows(batch)),
        Way("SGLang-shaped", lambda batch: lambda: per_query_head(batch)),
        Way("flex_attention", bind_flex, optional=True),
        Way("FlashInfer", bind_flashinfer, optional=True),
    ]


def contiguous(batch: Batch, cache: Tensor) -> Tensor:
    """Keys or values of all requests out of their pages: [B, Hk, prefix + T, D]."""
    page_table, prefix_lens, n_nodes = batch.tables[:3]
    positions = torch.arange(int(prefix_lens[0] + n_nodes[0]), device=cache.device)
    pages = page_table[:, positions // cache.shape[1]].long()
    return cache[pages, positions % cache.shape[1]].transpose(1, 2).contiguous()


def dense_mask(batch: Batch) -> Tensor:
    """[B, T, prefix + T] bool: which keys a node sees."""
    _, prefix_lens, n_nodes, _, ancestors, _ = batch.tables
    nodes = int(n_nodes[0])
    bits = torch.arange(nodes, device=ancestors.device)
    words = ancestors.view(-1, nodes, ancestors.shape[1])[..., bits // 64]
    tree = (words >> bits % 64) & 1
    prefix = tree.new_ones(*tree.shape[:2], int(prefix_lens[0]))
    return torch.cat([prefix, tree], 2).bool()


def bind_sdpa(batch: Batch) -> Callable[[], Tensor]:
    """torch's attention; the heads of a group are rows, so that it too reads keys once."""
    keys, values = contiguous(batch, batch.k_cache), contiguous(batch, batch.v_cache)
    requests, heads, tokens, dim = keys.shape
    group = batch.q.shape[1] // heads
    q = batch.q.view(requests, -1, heads, group, dim).permute(0, 2, 1, 3, 4)
    rows = q.reshape(requests, heads, -1, dim).contiguous()
    seen = dense_mask(batch).repeat_interleave(group, 1)[:, None]
    # Rows of the mask begin at multiples of 8 elements, or torch copies it in every call.
    mask = rows.new_zeros(requests, 1, rows.shape[2], -(-tokens // 8) * 8)[..., :tokens]
    mask.masked_fill_(~seen, float("-inf"))
    mask = mask.expand(-1, heads, -1, -1)

    def run() -> Tensor:
        out = scaled_dot_product_attention(rows, keys, values, mask, scale=batch.scale)
        return out.view_as(q).permute(0, 2, 1, 3, 4).reshape(batch.q.shape)

    return run


def bind_flex(batch: Batch) -> Callable[[], Tensor]:
    """torch's flex_attention, compiled for these sizes, over a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    _, prefix_lens, n_nodes, _, ancestors, _ = batch.tables
    prefix, nodes = int(prefix_lens[0]), int(n_nodes[0])
    words = ancestors[:, 0].view(-1, nodes).contiguous()

    def sees(b: Tensor, head: Tensor, node: Tensor, key: Tensor) -> Tensor:
        bit = (key - prefix).clamp(min=0)
        return (key < prefix) | (((words[b, node] >> bit) & 1) == 1)

    keys, values = contiguous(batch, batch.k_cache), contiguous(batch, batch.v_cache)
    q = batch.q.view(keys.shape[0], nodes, -1, keys.shape[3]).transpose(1, 2).contiguous()
    blocks = create_block_mask(sees, keys.shape[0], None, nodes, keys.shape[2], q.device)
    attend = compiled_flex(tuple(q.shape), tuple(keys.shape))

    def run() -> Tensor:
        out = attend(q, keys, values, block_mask=blocks, scale=batch.scale, enable_gqa=True)
        return out.transpose(1, 2).reshape(batch.q.shape)

    return run


@cache
def compiled_flex(*_: tuple[int, ...]) -> Callable[..., Tensor]:
    """Compiled anew for each shape: there is a limit to how often torch recompiles a function."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    # fullgraph: an error, not a slow fallback, where it cannot be compiled.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def bind_flashinfer(batch: Batch) -> Callable[[], Tensor]:
    """FlashInfer's paged prefill with a custom mask, planned beforehand."""
    import flashinfer

    page_table, prefix_lens, n_nodes, offsets = batch.tables[:4]
    page_tokens, heads, dim = batch.k_cache.shape[1:]
    tokens = int(prefix_lens[0] + n_nodes[0])
    pages = -(-tokens // page_tokens)
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=batch.q.device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        offsets,
        torch.arange(len(offsets), dtype=torch.int32, device=batch.q.device) * pages,
        page_table[:, :pages].flatten(),
        torch.full_like(n_nodes, (tokens - 1) % page_tokens + 1),
        batch.q.shape[1],
        heads,
        dim,
        page_tokens,
        custom_mask=dense_mask(batch).flatten(),
        q_data_type=batch.q.dtype,
        kv_data_type=batch.k_cache.dtype,
        sm_scale=batch.scale,
    )
    return lambda: wrapper.run(batch.q, (batch.k_cache, batch.v_cache))
