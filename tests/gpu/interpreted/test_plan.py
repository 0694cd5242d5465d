import pytest
import torch
import triton
import triton.language as tl

from bench.predict.attention import n_splits
from specedge_kernels.gpu.plan import (
    INVARIANT_SPLIT_TOKENS,
    max_partial_rows,
    plan_batch,
    split_prefix,
)

KEYS = 64


@triton.jit
def plan_kernel(
    prefix_lens,
    n_nodes,
    offsets,
    batch,
    window,
    out,
    G: tl.constexpr,
    BATCH: tl.constexpr,
    INVARIANT: tl.constexpr,
):
    request = tl.arange(0, BATCH)
    known = request < batch
    prefix = tl.load(prefix_lens + request, mask=known, other=0)
    rows = tl.load(offsets + request + 1, mask=known, other=0)
    rows -= tl.load(offsets + request, mask=known, other=0)
    nodes = tl.load(n_nodes + request, mask=known, other=0)
    first, size, splits = split_prefix(prefix, nodes, rows * G, window, True, INVARIANT, 64)
    items, partial = plan_batch(
        prefix_lens, n_nodes, offsets, batch, window, G, BATCH, True, INVARIANT, 64, 64
    )
    tl.store(out + request, first, mask=known)
    tl.store(out + batch + request, size, mask=known)
    tl.store(out + 2 * batch + request, splits, mask=known)
    tl.store(out + 3 * batch + request, items, mask=known)
    tl.store(out + 4 * batch + request, partial, mask=known)


@pytest.mark.every_value
@pytest.mark.parametrize("group", [1, 5, 8])
@pytest.mark.parametrize("window", [1, 300, 2**30])
@pytest.mark.parametrize("invariant", [False, True])
def test_splits_cover_the_prefix_and_fit_the_workspace(device, group, window, invariant):
    generator = torch.Generator().manual_seed(group)
    for batch, longest, most_rows in [(1, 40000, 3), (9, 700, 70), (33, 6000, 40), (12, 200, 9)]:
        prefix = torch.randint(longest, (batch,), generator=generator, dtype=torch.int32)
        rows = torch.randint(most_rows, (batch,), generator=generator, dtype=torch.int32)
        offsets = torch.cat([torch.zeros(1), rows.cumsum(0)]).int()
        out = torch.full((5, batch), -1, dtype=torch.int32, device=device)
        nodes = rows + torch.randint(9, (batch,), generator=generator, dtype=torch.int32)
        tables = [tensor.to(device) for tensor in (prefix, nodes, offsets)]
        padded = triton.next_power_of_2(batch)
        plan_kernel[(1,)](*tables, batch, window, out, group, padded, invariant)
        first, size, splits, items, partial = out.cpu()
        assert (first % KEYS == 0).all()
        assert (first <= (prefix + 1 - window).clamp(min=0)).all()
        tokens = (prefix + nodes * invariant - first).clamp(min=0)
        assert (size % KEYS == 0).all()
        assert (splits * size >= tokens).all()
        assert ((splits - 1) * size < tokens.clamp(min=1)).all()
        assert torch.equal(items, -(-rows * group // 64) * splits)
        assert torch.equal(partial, torch.where(splits > 1, splits * rows, 0))
        most = (int(rows.sum()), batch, group, int((prefix + nodes).max()), invariant)
        assert partial.sum() <= max_partial_rows(*most)
        if window == 2**30:  # as predictions reckon
            numbers = zip(prefix.tolist(), nodes.tolist(), (rows * group).tolist(), strict=True)
            assert splits.tolist() == [n_splits(*three, KEYS, invariant) for three in numbers]
        if invariant:
            assert (first % INVARIANT_SPLIT_TOKENS.value == 0).all()
            assert (size == INVARIANT_SPLIT_TOKENS.value).all()
