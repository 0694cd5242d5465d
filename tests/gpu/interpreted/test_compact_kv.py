import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.compact_kv import BLOCK_ELEMENTS, NODES_AT_ONCE, compact_kv
from specedge_kernels.gpu.verify import verify
from tests.kernels.cases import int32, make_batch, parents_of


def make_case(dtype, page_size, layout, dim, generator):
    """Five requests over shuffled pages: jumps, no moves, no path, and longer than a turn."""
    steps = list(range(1, 64, 3))
    assert len(steps) > 2 * NODES_AT_ONCE
    paths = [[0, 2, 3, 40], [], [0, 1, 2], [1, 2, 5, 6, 7, 63], steps]
    prefixes = int32([17, 3, 64, 0, 31])
    pages = -(-128 // page_size)
    n_pages = len(paths) * pages + 2
    table = torch.randperm(n_pages, generator=generator)[: len(paths) * pages].int()
    sizes = (2, page_size) if layout == "HND" else (page_size, 2)
    kv = torch.randint(-100, 100, (1, 2, n_pages, *sizes, dim), generator=generator).to(dtype)
    path = torch.full((len(paths), len(steps) + 1), -5, dtype=torch.int32)
    for b, nodes in enumerate(paths):
        path[b, : len(nodes)] = int32(nodes)
    lens = int32([len(nodes) for nodes in paths])
    tables = (table.view(len(paths), pages).contiguous(), prefixes, path, lens)
    return kv.transpose(3, 4) if layout == "HND" else kv, tables


@pytest.mark.every_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.complex128])
@pytest.mark.parametrize(("page_size", "layout"), [(1, "NHD"), (16, "HND"), (64, "NHD")])
def test_moves_equal_the_reference(dtype, page_size, layout, device):
    kv, tables = make_case(dtype, page_size, layout, 24, torch.Generator().manual_seed(page_size))
    got = kv.to(device, copy=True)
    assert got.stride() == kv.stride()
    reference.compact_kv(kv, *tables)
    compact_kv(got, *(table.to(device) for table in tables))
    assert torch.equal(got.cpu(), kv)


def test_all_layers_parts_and_blocks_of_wide_rows(device):
    generator = torch.Generator().manual_seed(3)
    kv = torch.randn(3, 3, 6, 4, 5, 2 * BLOCK_ELEMENTS // 5, generator=generator)
    tables = (int32([[2, 4, 1]]), int32([3]), int32([[0, 3, 8]]), int32([3]))
    got = kv.to(device, copy=True)
    reference.compact_kv(kv, *tables)
    compact_kv(got, *(table.to(device) for table in tables))
    assert torch.equal(got.cpu(), kv)


def test_verdicts_of_the_verify_kernel_drive_the_moves(device):
    generator = torch.Generator().manual_seed(5)
    trees = [parents_of(shape, 20, generator) for shape in ("chain", "binary", "random")]
    batch = make_batch(trees, [0, 7, 16], 8, generator)
    tokens, target = torch.randint(2, (2, 60), generator=generator)
    kv = torch.randn(2, 2, *batch.used.shape, 1, 4, generator=generator)
    got = kv.to(device, copy=True)
    there = [t.to(device) for t in (tokens, batch.ancestors, batch.offsets, target)]
    path, lens, _ = verify(*there, 20)
    compact_kv(got, batch.page_table.to(device), batch.prefix_lens.to(device), path, lens)
    path, lens, _ = reference.verify(tokens, batch.ancestors, batch.offsets, target, 20)
    assert lens.max() > 3
    reference.compact_kv(kv, batch.page_table, batch.prefix_lens, path, lens)
    assert torch.equal(got.cpu(), kv)


def test_no_requests(device):
    kv = torch.randn(1, 2, 3, 4, 1, 8, device=device)
    before = kv.clone()
    empty = torch.zeros(0, 4, dtype=torch.int32, device=device)
    compact_kv(kv, empty, empty[:, 0].contiguous(), empty, empty[:, 0].contiguous())
    assert torch.equal(kv, before)
