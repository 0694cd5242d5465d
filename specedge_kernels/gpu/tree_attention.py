"""Tree attention on a GPU: keys and values of a (request, KV head) streamed once per row tile.

The G query heads of a KV head and the nodes of a request form the rows of a tile: row m is node
m // G, head m % G. A row tile and a split of the prefix are one work item; programs are persistent
and take every n-th item. Tiles of keys that all rows see are added without a mask, with loads in
flight and the page ids one tile ahead; the rest under one 64-bit word per row. A prefix in several
splits leaves float32 partial results, which a second kernel adds in the order of the splits.

What a row adds up, and in which order, follows from its request alone (prefix, rows, window) and
from the tile shape: not from batch mates, the width of the page table, the number of programs or
when each runs. The tile's rows follow the batch's mean, so the promise of equal bits ends where
`tiles.py` picks another tile, and in a tree of another size, unlike on a CPU. Knows nothing of
where trees come from or what is drawn.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.merge_splits import MERGED_HEADS, merge_splits_kernel
from specedge_kernels.gpu.plan import (
    find_request,
    max_partial_rows,
    plan_batch,
    split_prefix,
    sum_before,
)
from specedge_kernels.gpu.tiles import Tile, choose_tile, n_programs
from specedge_kernels.gpu.visible import has_bit, visible_word, window_start

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["batch", "pages_per_request", "window"])
def tree_attention_kernel(
    q,  # [N, HK * GROUP, D]
    k_cache,  # [P, S, HK, D]
    v_cache,  # [P, S, HK, D]
    page_table,  # [B, M]
    prefix_lens,  # [B]
    n_nodes,  # [B]
    offsets,  # [B + 1]
    ancestors,  # [N, W]
    depth,  # [N]
    out,  # [N, HK * GROUP, D]
    partial_out,  # [R, HK * GROUP, D] f32, normalised; R rows of partial results, see plan.py
    partial_lse,  # [R, HK * GROUP] f32, base 2
    batch,
    pages_per_request,
    k_page,
    k_token,
    k_head,
    v_page,
    v_token,
    v_head,
    scale,
    softcap,
    window,
    HK: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    W: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    UPCAST: tl.constexpr,
):
    DTYPE: tl.constexpr = q.dtype.element_ty
    DOT: tl.constexpr = tl.float32 if UPCAST else DTYPE
    items, partial_rows = plan_batch(
        prefix_lens, offsets, batch, window, GROUP, BATCH, WINDOW, BLOCK_ROWS, BLOCK_KEYS
    )
    n_items = tl.sum(items, 0) * HK
    columns, d = tl.arange(0, BLOCK_KEYS), tl.arange(0, BLOCK_D)
    # Hoisting out of this loop would hold registers through the inner ones.
    for item in tl.range(
        tl.program_id(0), n_items, tl.num_programs(0), num_stages=1, disable_licm=True
    ):
        b, index = find_request(items * HK, item, BATCH)
        first_row = tl.load(offsets + b)
        rows = tl.load(offsets + b + 1) - first_row
        prefix = tl.load(prefix_lens + b)
        first, size, splits = split_prefix(prefix, rows * GROUP, window, WINDOW, BLOCK_KEYS)
        # Row tiles are next to each other, then heads: neighbours share keys in the L2.
        tiles = tl.cdiv(rows * GROUP, BLOCK_ROWS)
        tile, head, split = index % tiles, index // tiles % HK, index // (tiles * HK)

        # Rows beyond the last repeat it, so that they never widen what the tile sees.
        first_node = tl.load(n_nodes + b) - rows
        m = tl.minimum(tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), rows * GROUP - 1)
        row, node = first_row + m // GROUP, first_node + m // GROUP
        row_depth = tl.load(depth + row)
        chain = row_depth == node

        # The item owns slots begin .. end-1; every row sees all of full_begin .. full_end-1.
        begin = first + split * size
        end = tl.where(split == splits - 1, prefix + tl.max(node, 0) + 1, begin + size)
        straight = prefix + tl.min(tl.where(chain, node + 1, 0), 0)
        start, seen, full_begin = node * 0, begin, begin
        if WINDOW:
            start = window_start(ancestors, row, row_depth, chain, prefix, window, W)
            seen = tl.maximum(begin, tl.min(start, 0))
            begin = seen // BLOCK_KEYS * BLOCK_KEYS
            full_begin = tl.maximum(begin, tl.cdiv(tl.max(start, 0), BLOCK_KEYS) * BLOCK_KEYS)
        full_end = tl.maximum(full_begin, tl.minimum(straight, end) // BLOCK_KEYS * BLOCK_KEYS)

        query = (row * (HK * GROUP) + head * GROUP + m % GROUP).to(tl.int64) * D
        queries = load_block(q + query[:, None] + d[None, :], row, d, D, False).to(DOT)
        k_base, v_base = k_cache + head.to(tl.int64) * k_head, v_cache + head.to(tl.int64) * v_head
        table = page_table + b * pages_per_request
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        sums = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)

        # The ids of the next tile travel in `pages`: looked up inside a turn, they would keep the
        # compiler from starting the next loads early.
        pages = load_pages(table, full_begin + columns, full_begin, full_end, S)
        for tile_begin in tl.range(full_begin, full_end, BLOCK_KEYS):
            slots = tile_begin + columns
            next_pages = load_pages(table, slots + BLOCK_KEYS, full_begin, full_end, S)
            key_pointers = locate(k_base, pages, slots, k_page, k_token, d, S)
            value_pointers = locate(v_base, pages, slots, v_page, v_token, d, S)
            keys = load_block(key_pointers, slots, d, D, False).to(DTYPE).to(DOT)
            values = load_block(value_pointers, slots, d, D, False).to(DTYPE).to(DOT)
            scores = score(queries, keys, scale, softcap, SOFTCAP)
            top, total, sums = absorb(scores, values, top, total, sums, False)
            pages = next_pages

        # Tiles that the window cuts, then those around the tree.
        cut = tl.cdiv(tl.maximum(tl.minimum(full_begin, end) - begin, 0), BLOCK_KEYS)
        around = tl.cdiv(tl.maximum(end - full_end, 0), BLOCK_KEYS)
        for t in tl.range(0, cut + around, num_stages=1):
            tile_begin = tl.where(t < cut, begin, full_end - cut * BLOCK_KEYS) + t * BLOCK_KEYS
            slots = tile_begin + columns
            word = visible_word(ancestors, row, node, chain, start, prefix, tile_begin, W)
            pages = load_pages(table, slots, seen, end, S)
            # Slots that no row sees may hold anything, NaN included.
            used = (slots >= seen) & (slots < end)
            key_pointers = locate(k_base, pages, slots, k_page, k_token, d, S)
            keys = load_block(key_pointers, used, d, D, True).to(DTYPE).to(DOT)
            scores = score(queries, keys, scale, softcap, SOFTCAP)
            scores = tl.where(has_bit(word, columns), scores, float("-inf"))
            value_pointers = locate(v_base, pages, slots, v_page, v_token, d, S)
            values = load_block(value_pointers, used, d, D, True).to(DTYPE).to(DOT)
            top, total, sums = absorb(scores, values, top, total, sums, True)

        lse = tl.where(total > 0, top + tl.log2(total), float("-inf"))
        sums = sums / tl.where(total == 0, 1.0, total)[:, None]
        m = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        stored = (m < rows * GROUP)[:, None] & (d < D)[None, :]
        vector = (m // GROUP * (HK * GROUP) + head * GROUP + m % GROUP).to(tl.int64)
        if splits == 1:
            vector += first_row * (HK * GROUP)
            tl.store(out + vector[:, None] * D + d[None, :], sums.to(DTYPE), mask=stored)
        else:
            partial_row = sum_before(partial_rows, b, BATCH) + split * rows
            vector += partial_row * (HK * GROUP)
            tl.store(partial_lse + vector, lse, mask=m < rows * GROUP)
            tl.store(partial_out + vector[:, None] * D + d[None, :], sums, mask=stored)


@triton.jit
def load_pages(table, slots, begin, end, S: tl.constexpr):
    """Page ids of slots [BLOCK_KEYS] of one request; 0 outside begin .. end-1."""
    return tl.load(table + slots // S, mask=(slots >= begin) & (slots < end), other=0)


@triton.jit
def locate(base, pages, slots, page_stride, token_stride, d, S: tl.constexpr):
    """Pointers [BLOCK_KEYS, BLOCK_D] to the vectors of slots that lie in `pages`."""
    token = pages.to(tl.int64) * page_stride + (slots % S).to(tl.int64) * token_stride
    return base + token[:, None] + d[None, :]


@triton.jit
def load_block(pointers, used, d, D: tl.constexpr, MASKED: tl.constexpr):
    """Vectors of D elements, zero beyond D; if MASKED only those in use, the others zero."""
    if MASKED:
        return tl.load(pointers, mask=used[:, None] & (d < D)[None, :], other=0.0)
    elif d.shape[0] > D:
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def score(queries, keys, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores [BLOCK_ROWS, BLOCK_KEYS] f32 in base 2."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3")
    if SOFTCAP:  # softcap * tanh(x / softcap)
        capped = 2 * tl.sigmoid(2 * (scores * scale) / softcap) - 1
        return capped * (softcap * LOG2_E)
    else:
        return scores * (scale * LOG2_E)


@triton.jit
def absorb(scores, values, top, total, sums, MASKED: tl.constexpr):
    """One step of the online softmax (FlashAttention, arXiv:2205.14135)."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    origin = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    shrink = tl.exp2(top - origin)
    weights = tl.exp2(scores - origin[:, None])
    total = total * shrink + tl.sum(weights, 1)
    sums = tl.dot(
        weights.to(values.dtype), values, sums * shrink[:, None], input_precision="tf32x3"
    )
    return new_top, total, sums


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
    """See `ops.tree_attention`."""
    tables = (page_table, prefix_lens, n_nodes, offsets, ancestors, depth)
    tile = choose_tile(q, k_cache, batch=prefix_lens.shape[0])
    return launch(q, k_cache, v_cache, *tables, scale, softcap, window, tile)


def launch(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    prefix_lens: Tensor,
    n_nodes: Tensor,
    offsets: Tensor,
    ancestors: Tensor,
    depth: Tensor,
    scale: float,
    softcap: float,
    window: int,
    tile: Tile,
) -> Tensor:
    """The op with a given tile: one launch, and a second one where prefixes can be split."""
    out = torch.empty_like(q)
    rows, query_heads, dim = q.shape
    batch, table_width = page_table.shape
    page_size, heads = k_cache.shape[1:3]
    if q.numel() == 0:
        return out
    context_tokens = table_width * page_size
    partial_rows = max_partial_rows(rows, batch, query_heads // heads, context_tokens)
    partial_out = q.new_empty(partial_rows, query_heads, dim, dtype=torch.float32)
    partial_lse = q.new_empty(partial_rows, query_heads, dtype=torch.float32)
    common = {
        "GROUP": query_heads // heads,
        "D": dim,
        "BATCH": triton.next_power_of_2(batch),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_KEYS": tile.keys,
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "WINDOW": window >= 0,
    }
    tree_attention_kernel[(n_programs(q.device, tile),)](
        q,
        k_cache,
        v_cache,
        page_table,
        prefix_lens,
        n_nodes,
        offsets,
        ancestors,
        depth,
        out,
        partial_out,
        partial_lse,
        batch,
        table_width,
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        scale,
        softcap,
        window,
        HK=heads,
        S=page_size,
        W=ancestors.shape[1],
        SOFTCAP=softcap > 0,
        UPCAST=triton.knobs.runtime.interpret,
        **common,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if partial_rows > 0:
        merge_splits_kernel[(rows, triton.cdiv(query_heads, MERGED_HEADS))](
            partial_out,
            partial_lse,
            prefix_lens,
            offsets,
            out,
            batch,
            window,
            HQ=query_heads,
            BLOCK_HEADS=MERGED_HEADS,
            **common,
        )
    return out
