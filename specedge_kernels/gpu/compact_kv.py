"""Moves the KV of accepted paths next to their prefixes on a GPU: all layers in one launch.

In place and free of races: a program owns a block of columns of one request, whose nodes it moves
in ascending order, some at a time. A path increases, so a source never lies before its target:
what a turn writes no later turn reads, and within a turn a barrier parts reads from writes. Takes
elements as integers of their size; knows nothing of their meaning.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NODES_AT_ONCE = 8
BLOCK_ELEMENTS = 512
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@triton.jit(do_not_specialize=["pages_per_request", "max_path"])
def compact_kv_kernel(
    kv,  # [L, PARTS, P, S, HEADS, D]
    page_table,  # [B, pages_per_request]
    prefix_lens,  # [B]
    path,  # [B, max_path]
    accepted_lens,  # [B]
    pages_per_request,
    max_path,
    page_size,
    s_layer,
    s_part,
    s_page,
    s_token,
    s_head,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    plane, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (element < HEADS * D)[None, :]
    column = ((element // D).to(tl.int64) * s_head + element % D)[None, :]
    kv += (plane // PARTS).to(tl.int64) * s_layer + (plane % PARTS).to(tl.int64) * s_part
    table = page_table + b * pages_per_request
    prefix = tl.load(prefix_lens + b)
    accepted = tl.load(accepted_lens + b)
    for start in range(0, accepted, NODES):
        j = start + tl.arange(0, NODES)
        node = tl.load(path + b * max_path + j, mask=j < accepted, other=0)
        moves = (j < accepted) & (node != j)
        source = position_in_cache(table, prefix + node, moves, page_size, s_page, s_token)
        target = position_in_cache(table, prefix + j, moves, page_size, s_page, s_token)
        mask = moves[:, None] & inside
        moved = tl.load(kv + source[:, None] + column, mask=mask)
        tl.debug_barrier()
        tl.store(kv + target[:, None] + column, moved, mask=mask)


@triton.jit
def position_in_cache(table, position, mask, page_size, s_page, s_token):
    page = tl.load(table + position // page_size, mask=mask, other=0).to(tl.int64)
    return page * s_page + (position % page_size).to(tl.int64) * s_token


def compact_kv(
    kv: Tensor, page_table: Tensor, prefix_lens: Tensor, path: Tensor, accepted_lens: Tensor
) -> None:
    words = kv.view(WORDS[kv.element_size()])
    layers, parts, _, page_size, heads, dim = words.shape
    if kv.numel() and path.numel():
        block = min(BLOCK_ELEMENTS, triton.next_power_of_2(heads * dim))
        compact_kv_kernel[(triton.cdiv(heads * dim, block), layers * parts, path.shape[0])](
            words,
            page_table,
            prefix_lens,
            path,
            accepted_lens,
            page_table.shape[1],
            path.shape[1],
            page_size,
            *words.stride()[:5],
            PARTS=parts,
            HEADS=heads,
            D=dim,
            NODES=NODES_AT_ONCE,
            BLOCK=block,
        )
