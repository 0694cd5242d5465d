"""Adds up the partial results of a split prefix, in the order of the splits: always the same bits.

One program per row and block of heads; rows of requests with one split are already written. Knows
no keys: only weights exp2(lse) and the normalised sums that go with them.
"""

import triton
import triton.language as tl

from specedge_kernels.gpu.online_softmax import LN_2, LOG2_E, beside_sink
from specedge_kernels.gpu.plan import plan_batch, split_prefix, sum_before

MERGED_HEADS = 8  # query heads of one program


@triton.jit(do_not_specialize=["batch", "window"])
def merge_splits_kernel(
    partial_out,  # [R, HQ, DV] f32
    partial_lse,  # [R, HQ] f32
    prefix_lens,  # [B]
    n_nodes,  # [B]
    offsets,  # [B + 1]
    sinks,  # [HQ] f32 or None
    out,  # [N, HQ, DV]
    lse,  # [N, HQ] f32, natural; untouched unless LSE
    batch,
    window,
    HQ: tl.constexpr,
    GROUP: tl.constexpr,
    DV: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    INVARIANT: tl.constexpr,
    LSE: tl.constexpr,
):
    row = tl.program_id(0)
    request = tl.arange(0, BATCH)
    ends = tl.load(offsets + request + 1, mask=request < batch, other=row + 1)
    b = tl.sum((ends <= row).to(tl.int32), 0)
    first_row = tl.load(offsets + b)
    rows = tl.load(offsets + b + 1) - first_row
    prefix = tl.load(prefix_lens + b)
    nodes = tl.load(n_nodes + b)
    _, _, splits = split_prefix(prefix, nodes, rows * GROUP, window, WINDOW, INVARIANT, BLOCK_KEYS)
    if splits > 1:
        partial_rows = plan_batch(
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
        )[1]
        partial_row = sum_before(partial_rows, b, BATCH) + row - first_row
        head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        d = tl.arange(0, BLOCK_DV)
        inside = (head < HQ)[:, None] & (d < DV)[None, :]
        top = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_HEADS], tl.float32)
        sums = tl.zeros([BLOCK_HEADS, BLOCK_DV], tl.float32)
        for split in tl.range(0, splits, num_stages=4):
            vector = (partial_row + split * rows).to(tl.int64) * HQ + head
            part = tl.load(partial_lse + vector, mask=head < HQ, other=float("-inf"))
            pointers = partial_out + vector[:, None] * DV + d[None, :]
            new_top = tl.maximum(top, part)
            origin = tl.where(new_top == float("-inf"), 0.0, new_top)
            shrink, weight = tl.exp2(top - origin), tl.exp2(part - origin)
            total = total * shrink + weight
            sums = sums * shrink[:, None]
            sums += tl.load(pointers, mask=inside, other=0) * weight[:, None]
            top = new_top
        total = tl.where(total == 0, 1.0, total)
        sums = sums / total[:, None]
        row_lse = top + tl.log2(total)
        if sinks is not None:
            sink = tl.load(sinks + head, mask=head < HQ, other=0) * LOG2_E
            share, row_lse = beside_sink(row_lse, sink)
            sums = sums * share[:, None]
        vector = row.to(tl.int64) * HQ + head
        pointers = out + vector[:, None] * DV + d[None, :]
        tl.store(pointers, sums.to(out.dtype.element_ty), mask=inside)
        if LSE:
            tl.store(lse + vector, row_lse * LN_2, mask=head < HQ)
