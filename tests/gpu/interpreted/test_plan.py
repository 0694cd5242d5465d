import pytest
import torch
import triton
import triton.language as tl

from specedge_kernels.gpu.plan import max_partial_rows, plan_batch, split_prefix

KEYS = 64


@triton.jit
def plan_kernel(prefix_lens, offsets, batch, window, out, G: tl.constexpr, BATCH: tl.constexpr):
    request = tl.arange(0, BATCH)
    known = request < batch
    prefix = tl.load(prefix_lens + request, mask=known, other=0)
    rows = tl.load(offsets + request + 1, mask=known, other=0)
    rows -= tl.load(offsets + request, mask=known, other=0)
    first, size, splits = split_prefix(prefix, rows * G, window, True, 64)
    items, partial = plan_batch(prefix_lens, offsets, batch, window, G, BATCH, True, 64, 64)
    tl.store(out + request, first, mask=known)
    tl.store(out + batch + request, size, mask=known)
    tl.store(out + 2 * batch + request, splits, mask=known)
    tl.store(out + 3 * batch + request, items, mask=known)
    tl.store(out + 4 * batch + request, partial, mask=known)


@pytest.mark.parametrize("group", [1, 5, 8])
@pytest.mark.parametrize("window", [1, 300, 2**30])
def test_splits_cover_the_prefix_and_fit_the_workspace(device, group, window):
    generator = torch.Generator().manual_seed(group)
    for batch, longest, most_rows in [(1, 40000, 3), (9, 700, 70), (33, 6000, 40), (12, 200, 9)]:
        prefix = torch.randint(longest, (batch,), generator=generator, dtype=torch.int32)
        rows = torch.randint(most_rows, (batch,), generator=generator, dtype=torch.int32)
        offsets = torch.cat([torch.zeros(1), rows.cumsum(0)]).int()
        out = torch.full((5, batch), -1, dtype=torch.int32, device=device)
        tables = [tensor.to(device) for tensor in (prefix, offsets)]
        plan_kernel[(1,)](*tables, batch, window, out, group, triton.next_power_of_2(batch))
        first, size, splits, items, partial = out.cpu()
        assert (first % KEYS == 0).all()
        assert (first <= (prefix + 1 - window).clamp(min=0)).all()
        tokens = (prefix - first).clamp(min=0)
        assert (size % KEYS == 0).all()
        assert (splits * size >= tokens).all()
        assert ((splits - 1) * size < tokens.clamp(min=1)).all()
        assert torch.equal(items, -(-rows * group // 64) * splits)
        assert torch.equal(partial, torch.where(splits > 1, splits * rows, 0))
        context_tokens = int((prefix + rows).max())
        assert partial.sum() <= max_partial_rows(int(rows.sum()), batch, group, context_tokens)
