"""Two schedules of other engines, rewritten in one plain Triton kernel, to compare schedules only.

vLLM-shaped: tiles of 16 rows, all heads of a group packed, so the keys are streamed once for every
16 rows. SGLang-shaped: one program per query head with 128 rows, so they are streamed once for
every head. Neither splits a prefix, and both look page ids up inside the loop, as the originals do.
Masks are bits here, which favours both: the originals read a dense mask or bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from bench.kernels.attention import Batch


@triton.jit
def plain_attention_kernel(
    q,  # [N, HQ, D]
    k_cache,  # [P, S, HK, D]
    v_cache,  # [P, S, HK, D]
    page_table,  # [B, M]
    prefix_lens,  # [B]
    offsets,  # [B + 1]
    ancestors,  # [N, 1]
    out,  # [N, HQ, D]
    table_width,
    scale,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    PACK: tl.constexpr,  # query heads in a tile
    NODES: tl.constexpr,  # nodes in a tile
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    b, pack, tile = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    first_row = tl.load(offsets + b)
    nodes = tl.load(offsets + b + 1) - first_row
    prefix = tl.load(prefix_lens + b)
    m, d = tl.arange(0, BLOCK_ROWS), tl.arange(0, D)
    node = tile * NODES + m // PACK
    real = (m < NODES * PACK) & (node < nodes)
    vector = ((first_row + node) * HQ + pack * PACK + m % PACK).to(tl.int64) * D
    queries = tl.load(q + vector[:, None] + d[None, :], mask=real[:, None], other=0.0)
    word = tl.load(ancestors + first_row + node, mask=real, other=0)
    head = pack * PACK // (HQ // HK)
    top = tl.full([BLOCK_ROWS], -1e30, tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_ROWS, D], tl.float32)
    for begin in range(0, prefix + nodes, BLOCK_KEYS):
        slot = begin + tl.arange(0, BLOCK_KEYS)
        used = slot < prefix + nodes
        page = tl.load(page_table + b * table_width + slot // S, mask=used, other=0).to(tl.int64)
        element = ((page * S + slot % S) * HK + head)[:, None] * D + d[None, :]
        keys = tl.load(k_cache + element, mask=used[:, None], other=0.0)
        values = tl.load(v_cache + element, mask=used[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * scale
        bit = tl.minimum(tl.maximum(slot - prefix, 0), 63).to(tl.int64)
        seen = (slot < prefix)[None, :] | (((word[:, None] >> bit[None, :]) & 1) == 1)
        scores = tl.where(seen & used[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None])
        top = new_top
    result = (sums / tl.where(total > 0, total, 1.0)[:, None]).to(out.dtype.element_ty)
    tl.store(out + vector[:, None] + d[None, :], result, mask=real[:, None])


def sixteen_rows(batch: Batch) -> Tensor:
    """The vLLM-shaped schedule."""
    group = batch.q.shape[1] // batch.k_cache.shape[2]
    return launch(batch, group, max(1, 16 // group), max(16, group), 4)


def per_query_head(batch: Batch) -> Tensor:
    """The SGLang-shaped schedule."""
    return launch(batch, 1, 128, 128, 8)


def launch(batch: Batch, pack: int, nodes: int, block_rows: int, warps: int) -> Tensor:
    page_table, prefix_lens, _, offsets, ancestors, _ = batch.tables
    out = torch.empty_like(batch.q)
    rows, query_heads, dim = batch.q.shape
    requests = page_table.shape[0]
    tiles = triton.cdiv(rows // requests, nodes)
    plain_attention_kernel[(tiles, query_heads // pack, requests)](
        batch.q,
        batch.k_cache,
        batch.v_cache,
        page_table,
        prefix_lens,
        offsets,
        ancestors,
        out,
        page_table.shape[1],
        batch.scale,
        HQ=query_heads,
        HK=batch.k_cache.shape[2],
        D=dim,
        S=batch.k_cache.shape[1],
        PACK=pack,
        NODES=nodes,
        BLOCK_ROWS=triton.next_power_of_2(block_rows),
        BLOCK_KEYS=64,
        num_warps=warps,
        num_stages=3,
    )
    return out
