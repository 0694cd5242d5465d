"""Tree attention on a GPU: keys and values of a (request, KV head) streamed once per row tile.

The G query heads of a KV head and the nodes of a request form the rows of a tile: row m is node
m // G, head m % G. A row tile and a split of the prefix are one work item; programs are persistent
and take every n-th item. Tiles of keys that all rows see are added without a mask, with loads in
flight and the page ids one tile ahead; the rest under one 64-bit word per row. A prefix in several
splits leaves float32 partial results, which a second kernel adds in the order of the splits.

What a row adds up, and in which order, follows from its request alone (prefix, rows, window) and
from the tile shape: not from batch mates, the width of the page table, the number of programs or
when each runs. With INVARIANT it follows from the row's own path alone, as on a CPU: one tile
shape, tiles and splits at fixed positions of the *path*, and the positions around the tree
gathered along each node's path, so that equal positions meet in equal columns. Knows nothing of
where trees come from or what is drawn.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.merge_splits import MERGED_HEADS, merge_splits_kernel
from specedge_kernels.gpu.online_softmax import (
    LN_2,
    LOG2_E,
    absorb,
    add_values,
    beside_sink,
    capped,
)
from specedge_kernels.gpu.paged import (
    are_parts,
    load_pages,
    load_tokens,
    load_vectors,
    offset_type,
    store_vectors,
    width_of,
)
from specedge_kernels.gpu.plan import (
    find_request,
    max_partial_rows,
    plan_batch,
    split_prefix,
    sum_before,
)
from specedge_kernels.gpu.stored import as_stored
from specedge_kernels.gpu.tiles import Tile, choose_tile, converts_e4m3, n_programs, n_totals
from specedge_kernels.gpu.visible import (
    has_bit,
    ones_below,
    path_slots,
    visible_word,
    window_start,
)

LEAST_SCALE = 1e-30  # in place of 0, of which -inf is no multiple


@triton.jit(do_not_specialize=["batch", "pages_per_request", "window"])
def tree_attention_kernel(
    q,  # [N, HK * GROUP, D]
    k_cache,  # [P, S, HK, D]
    v_cache,  # [P, S, HK, DV]
    page_table,  # [B, M]
    prefix_lens,  # [B]
    n_nodes,  # [B]
    offsets,  # [B + 1]
    ancestors,  # [N, W]
    depth,  # [N]
    k_scales,  # [HK] f32 or None
    v_scales,  # [HK] f32 or None
    sinks,  # [HK * GROUP] f32 or None
    out,  # [N, HK * GROUP, DV]
    lse,  # [N, HK * GROUP] f32, natural; untouched unless LSE
    partial_out,  # [R, HK * GROUP, DV] f32, normalised; R rows of partial results, see plan.py
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
    v_scale,
    HK: tl.constexpr,
    GROUP: tl.constexpr,
    KEY: tl.constexpr,  # Width of D
    VALUE: tl.constexpr,  # Width of DV
    SHARED: tl.constexpr,  # the values are a part of the keys
    ALIKE: tl.constexpr,  # the values have the strides of the keys
    S: tl.constexpr,
    W: tl.constexpr,
    OFFSET: tl.constexpr,  # the type of offsets within a cache
    BATCH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    INVARIANT: tl.constexpr,
    LSE: tl.constexpr,
    NATIVE_E4M3: tl.constexpr,
    TOTALS: tl.constexpr,  # parts of the total weight of a row
    UPCAST: tl.constexpr,
):
    DTYPE: tl.constexpr = q.dtype.element_ty
    DOT: tl.constexpr = tl.float32 if UPCAST else DTYPE
    EXACT: tl.constexpr = tl.float32 == DTYPE
    items, partial_rows = plan_batch(
        prefix_lens,
        n_nodes,
        offsets,
        batch,
        window,
        GROUP,
        BATCH,
        WINDOW,
        INVARIANT,
        BLOCK_ROWS,
        BLOCK_KEYS,
    )
    n_items = tl.sum(items, 0) * HK
    columns = tl.arange(0, BLOCK_KEYS)
    SUMS: tl.constexpr = VALUE.block
    RESTS: tl.constexpr = VALUE.rest if VALUE.rest > 0 else 1
    # Hoisting out of this loop would hold registers through the inner ones.
    for item in tl.range(
        tl.program_id(0), n_items, tl.num_programs(0), num_stages=1, disable_licm=True
    ):
        b, index = find_request(items * HK, item, BATCH)
        first_row = tl.load(offsets + b)
        rows = tl.load(offsets + b + 1) - first_row
        prefix, nodes = tl.load(prefix_lens + b), tl.load(n_nodes + b)
        first, size, splits = split_prefix(
            prefix, nodes, rows * GROUP, window, WINDOW, INVARIANT, BLOCK_KEYS
        )
        # Row tiles are next to each other, then heads: neighbours share keys in the L2.
        tiles = tl.cdiv(rows * GROUP, BLOCK_ROWS)
        tile, head, split = index % tiles, index // tiles % HK, index // (tiles * HK)

        # Rows beyond the last repeat it, so that they never widen what the tile sees.
        first_node = nodes - rows
        m = tl.minimum(tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS), rows * GROUP - 1)
        row, node = first_row + m // GROUP, first_node + m // GROUP
        row_depth = tl.load(depth + row)
        chain = row_depth == node

        # The item owns slots begin .. end-1; every row sees all of full_begin .. full_end-1.
        begin = first + split * size
        end = tl.where(split == splits - 1, prefix + tl.max(node, 0) + 1, begin + size)
        split_end, paths_begin, path_rows = begin + size, begin, rows * 0
        if INVARIANT:
            # From the tile around the end of the prefix on, paths fork, unless all are chains.
            forks = tl.min(chain.to(tl.int32), 0) == 0
            end = tl.minimum(split_end, prefix + tl.max(node, 0) + 1)
            end = tl.where(forks, tl.minimum(end, prefix // BLOCK_KEYS * BLOCK_KEYS), end)
            paths_begin = tl.maximum(begin, end)
            path_rows = tl.where(forks, tl.max(m, 0) // GROUP + 1, 0)
        straight = prefix + tl.min(tl.where(chain, node + 1, 0), 0)
        start, seen, full_begin = node * 0, begin, begin
        if WINDOW:
            start = window_start(ancestors, row, row_depth, chain, prefix, window, W)
            seen = tl.maximum(begin, tl.min(start, 0))
            begin = seen // BLOCK_KEYS * BLOCK_KEYS
            full_begin = tl.maximum(begin, tl.cdiv(tl.max(start, 0), BLOCK_KEYS) * BLOCK_KEYS)
        full_end = tl.maximum(full_begin, tl.minimum(straight, end) // BLOCK_KEYS * BLOCK_KEYS)

        query = (row * (HK * GROUP) + head * GROUP + m % GROUP).to(tl.int64) * KEY.numbers
        queries = load_vectors(q, query[:, None], row, KEY, False, False).to(DOT)
        query_rests = queries
        if KEY.rest:
            query_rests = load_vectors(q, query[:, None], row, KEY, True, False).to(DOT)
        own_scale, own_v_scale = scale, v_scale
        if k_scales is not None:
            own_scale = scale * tl.load(k_scales + head)
        if v_scales is not None:
            own_v_scale = v_scale * tl.load(v_scales + head)
        page, token = tl.cast(k_page, OFFSET), tl.cast(k_token, OFFSET)
        keys_at = (k_cache + head.to(tl.int64) * k_head, page, token)
        # Where they are the same the compiler computes places once.
        if not ALIKE:
            page, token = tl.cast(v_page, OFFSET), tl.cast(v_token, OFFSET)
        values_at = (v_cache + head.to(tl.int64) * v_head, page, token)
        table = page_table + b * pages_per_request
        unit = LOG2_E if SOFTCAP else own_scale * LOG2_E
        work = (queries, query_rests, keys_at, values_at, own_scale, softcap, unit)
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS, TOTALS], tl.float32)
        sums = tl.zeros([BLOCK_ROWS, SUMS], tl.float32)
        rests = tl.zeros([BLOCK_ROWS, RESTS], tl.float32)
        state = (top, total, sums, rests)

        if WINDOW:
            for tile_begin in tl.range(
                begin, tl.minimum(full_begin, end), BLOCK_KEYS, num_stages=1
            ):
                slots = tile_begin + columns
                word = visible_word(ancestors, row, node, chain, start, prefix, tile_begin, W)
                # Slots that no row sees may hold anything, NaN included.
                used = (slots >= seen) & (slots < end)
                pages = load_pages(table, slots, used, S)
                state = attend_tile(
                    work,
                    pages,
                    slots,
                    used,
                    word,
                    state,
                    KEY,
                    VALUE,
                    SHARED,
                    S,
                    DOT,
                    NATIVE_E4M3,
                    SOFTCAP,
                    EXACT,
                    True,
                )

        # The ids of the next tile travel in `pages`: looked up inside a turn, they would keep the
        # compiler from starting the next loads early.
        pages = load_pages(table, full_begin + columns, columns < full_end - full_begin, S)
        for tile_begin in tl.range(full_begin, full_end, BLOCK_KEYS):
            slots = tile_begin + columns
            ahead = tile_begin + BLOCK_KEYS
            next_pages = load_pages(table, ahead + columns, columns < full_end - ahead, S)
            state = attend_tile(
                work,
                pages,
                slots,
                slots,
                slots,
                state,
                KEY,
                VALUE,
                SHARED,
                S,
                DOT,
                NATIVE_E4M3,
                SOFTCAP,
                EXACT,
                False,
            )
            pages = next_pages

        for tile_begin in tl.range(full_end, end, BLOCK_KEYS, num_stages=1):
            slots = tile_begin + columns
            word = visible_word(ancestors, row, node, chain, start, prefix, tile_begin, W)
            used = (slots >= seen) & (slots < end)
            pages = load_pages(table, slots, used, S)
            state = attend_tile(
                work,
                pages,
                slots,
                used,
                word,
                state,
                KEY,
                VALUE,
                SHARED,
                S,
                DOT,
                NATIVE_E4M3,
                SOFTCAP,
                EXACT,
                True,
            )

        # One path at a time for the rows of its node, tokens in the columns of their positions.
        if INVARIANT:
            for r in tl.range(tile * BLOCK_ROWS // GROUP, path_rows, num_stages=1):
                path = first_row + r + columns * 0
                path_depth = tl.load(depth + first_row + r)
                length = prefix + path_depth + 1
                path_start = tl.maximum(length - window, 0) if WINDOW else length * 0
                path_begin = tl.maximum(paths_begin, path_start // BLOCK_KEYS * BLOCK_KEYS)
                own = tl.where(m // GROUP == r, length, 0)
                for tile_begin in tl.range(
                    path_begin, tl.minimum(split_end, length), BLOCK_KEYS, num_stages=1
                ):
                    positions = tile_begin + columns
                    slots = path_slots(
                        ancestors, path, path_depth == first_node + r, positions, prefix, W
                    )
                    word = ones_below(own - tile_begin) & ~ones_below(path_start - tile_begin)
                    used = (positions >= path_start) & (positions < length)
                    pages = load_pages(table, slots, used, S)
                    state = attend_tile(
                        work,
                        pages,
                        slots,
                        used,
                        word,
                        state,
                        KEY,
                        VALUE,
                        SHARED,
                        S,
                        DOT,
                        NATIVE_E4M3,
                        SOFTCAP,
                        EXACT,
                        True,
                    )

        top, total, sums, rests = state
        total = tl.sum(total, 1)
        total = tl.where(total == 0, 1.0, total)
        sums = sums / total[:, None] * own_v_scale
        rests = rests / total[:, None] * own_v_scale
        row_lse = top * unit + tl.log2(total)
        m = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        stored = m < rows * GROUP
        query_head = head * GROUP + m % GROUP
        vector = (m // GROUP * (HK * GROUP) + query_head).to(tl.int64)
        if splits == 1:
            if sinks is not None:
                share, row_lse = beside_sink(row_lse, tl.load(sinks + query_head) * LOG2_E)
                sums, rests = sums * share[:, None], rests * share[:, None]
            vector += first_row * (HK * GROUP)
            whole = out + vector[:, None] * VALUE.numbers
            store_vectors(whole, sums.to(DTYPE), stored, VALUE, False)
            if VALUE.rest:
                store_vectors(whole, rests.to(DTYPE), stored, VALUE, True)
            if LSE:
                tl.store(lse + vector, row_lse * LN_2, mask=stored)
        else:
            partial_row = sum_before(partial_rows, b, BATCH) + split * rows
            vector += partial_row * (HK * GROUP)
            tl.store(partial_lse + vector, row_lse, mask=stored)
            part = partial_out + vector[:, None] * VALUE.numbers
            store_vectors(part, sums, stored, VALUE, False)
            if VALUE.rest:
                store_vectors(part, rests, stored, VALUE, True)


@triton.jit
def attend_tile(
    work,
    pages,
    slots,
    used,
    word,
    state,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    SHARED: tl.constexpr,
    S: tl.constexpr,
    DOT: tl.constexpr,
    NATIVE_E4M3: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EXACT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One tile of keys; if MASKED each row sees the bits of its word, and what is not used is not
    read.

    work: what all tiles of an item share; state: of the running softmax, returned renewed.
    """
    queries, query_rests, keys_at, values_at, scale, softcap, unit = work
    top, total, sums, rests = state
    keys = load_tokens(keys_at, pages, slots, used, KEY, False, S, DOT, NATIVE_E4M3, MASKED)
    key_rests = keys
    products = tl.dot(queries, tl.trans(keys), input_precision="tf32x3")
    if KEY.rest:
        key_rests = load_tokens(keys_at, pages, slots, used, KEY, True, S, DOT, NATIVE_E4M3, MASKED)
        products = tl.dot(query_rests, tl.trans(key_rests), products, input_precision="tf32x3")
    scores = capped(products * scale, softcap) if SOFTCAP else products
    if MASKED:
        scores = tl.where(has_bit(word, tl.arange(0, slots.shape[0])), scores, float("-inf"))
    weights, shrink, top, total = absorb(scores, unit, top, total, MASKED, EXACT)
    values = keys
    if not SHARED:
        values = load_tokens(
            values_at, pages, slots, used, VALUE, False, S, DOT, NATIVE_E4M3, MASKED
        )
    sums = add_values(weights, values, shrink, sums)
    if VALUE.rest:
        value_rests = key_rests
        if not SHARED:
            value_rests = load_tokens(
                values_at, pages, slots, used, VALUE, True, S, DOT, NATIVE_E4M3, MASKED
            )
        rests = add_values(weights, value_rests, shrink, rests)
    return top, total, sums, rests


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
    k_scale: float = 1.0,
    k_scales: Tensor | None = None,
    v_scale: float = 1.0,
    v_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    with_lse: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `ops.tree_attention`."""
    tables = (page_table, prefix_lens, n_nodes, offsets, ancestors, depth)
    return launch(
        q,
        k_cache,
        v_cache,
        *tables,
        Scoring(scale * k_scale, softcap, window, v_scale, k_scales, v_scales, sinks),
        choose_tile(q, k_cache, v_cache, prefix_lens.shape[0], batch_invariant),
        with_lse=with_lse,
        batch_invariant=batch_invariant,
    )


@dataclass(frozen=True)
class Scoring:
    scale: float  # of queries times what the cache holds
    softcap: float = 0.0
    window: int = -1
    v_scale: float = 1.0
    k_scales: Tensor | None = None  # [Hk], beside `scale`
    v_scales: Tensor | None = None  # [Hk], beside `v_scale`
    sinks: Tensor | None = None  # [Hq]


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
    scoring: Scoring,
    tile: Tile,
    with_lse: bool = False,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """The op with a given tile: one launch, and a second one where prefixes can be split."""
    rows, query_heads = q.shape[:2]
    key, value = width_of(q.shape[2]), width_of(v_cache.shape[3])
    out = q.new_empty(rows, query_heads, value.numbers)
    lse = q.new_empty(q.shape[:2] if with_lse else 0, dtype=torch.float32)
    batch, table_width = page_table.shape
    page_size, heads = k_cache.shape[1:3]
    if out.numel() == 0:
        return out, lse
    # The largest product has the largest score.
    q, scale = -q if scoring.scale < 0 else q, max(abs(scoring.scale), LEAST_SCALE)
    group, context_tokens = query_heads // heads, table_width * page_size
    partial_rows = max_partial_rows(rows, batch, group, context_tokens, batch_invariant)
    partial_out = q.new_empty(partial_rows, query_heads, value.numbers, dtype=torch.float32)
    partial_lse = q.new_empty(partial_rows, query_heads, dtype=torch.float32)
    common = {
        "GROUP": group,
        "BATCH": triton.next_power_of_2(batch),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_KEYS": tile.keys,
        "WINDOW": scoring.window >= 0,
        "INVARIANT": batch_invariant,
        "LSE": with_lse,
    }
    if batch_invariant:
        # Where a product and a sum are fused would be up to the loop they stand in.
        common["enable_fp_fusion"] = False
    tree_attention_kernel[(n_programs(q.device, tile),)](
        q,
        as_stored(k_cache),
        as_stored(v_cache),
        page_table,
        prefix_lens,
        n_nodes,
        offsets,
        ancestors,
        depth,
        scoring.k_scales,
        scoring.v_scales,
        scoring.sinks,
        out,
        lse,
        partial_out,
        partial_lse,
        batch,
        table_width,
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        scale,
        scoring.softcap,
        scoring.window,
        scoring.v_scale,
        HK=heads,
        KEY=key,
        VALUE=value,
        SHARED=are_parts(v_cache, k_cache),
        ALIKE=v_cache.stride() == k_cache.stride(),
        S=page_size,
        W=ancestors.shape[1],
        OFFSET=offset_type(k_cache, v_cache),
        SOFTCAP=scoring.softcap > 0,
        NATIVE_E4M3=converts_e4m3(q.device),
        TOTALS=n_totals(q.device),
        UPCAST=triton.knobs.runtime.interpret,
        **common,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.max_registers,
    )
    if partial_rows > 0:
        merge_splits_kernel[(rows, triton.cdiv(query_heads, MERGED_HEADS))](
            partial_out,
            partial_lse,
            prefix_lens,
            n_nodes,
            offsets,
            scoring.sinks,
            out,
            lse,
            batch,
            scoring.window,
            HQ=query_heads,
            DV=value.numbers,
            BLOCK_DV=triton.next_power_of_2(value.numbers),
            BLOCK_HEADS=MERGED_HEADS,
            **common,
        )
    return out, lse
