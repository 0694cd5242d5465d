import pytest
import torch

from specedge_kernels.gpu.grouped_linear import TILES, grouped_linear

N_SETS = 6


def make(rows, per_row, inputs, outputs, dtype):
    """Set 1 is never named, set 3 by most pairs, some pairs name none."""
    generator = torch.Generator().manual_seed(rows + inputs)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    weight = torch.randn(N_SETS, outputs, inputs, generator=generator).to(dtype)
    groups = torch.randint(-1, N_SETS, (rows, per_row), generator=generator, dtype=torch.int32)
    groups[groups == 1] = 3
    return x, weight, groups, torch.randn(N_SETS, outputs, generator=generator)


def in_float64(x, weight, groups, bias):
    every = torch.einsum("nk,emk->nem", x.double(), weight.double())
    every = every if bias is None else every + bias.double()
    chosen = groups.clamp(min=0).long()[..., None].expand(-1, -1, weight.shape[1])
    return every.gather(1, chosen).masked_fill((groups < 0)[..., None], 0).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "per_row", "inputs", "outputs"),
    [(1, 1, 64, 128), (5, 3, 40, 70), (40, 4, 130, 33), (600, 1, 32, 16)],
)
def test_equals_a_float64_product(rows, per_row, inputs, outputs, dtype, device):
    x, weight, groups, bias = make(rows, per_row, inputs, outputs, dtype)
    for added in (None, bias):
        given = (x, weight, groups) if added is None else (x, weight, groups, added)
        on_device = [tensor.to(device) for tensor in given]
        got = grouped_linear(*on_device[:2], outputs, on_device[2], *(on_device[3:] or [None]))
        want = in_float64(x, weight, groups, added)
        assert got.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        assert (got.cpu() - want).norm() <= tolerance * want.norm()
        assert (got.cpu()[groups.flatten() < 0] == 0).all()


def test_a_row_has_the_same_bits_alone_and_in_any_batch(device):
    rows = 2 * TILES[2].rows + 5
    x, weight, groups, _ = make(rows, 2, 96, 48, torch.bfloat16)
    x, weight, groups = x.to(device), weight.to(device), groups.to(device)
    together = grouped_linear(x, weight, 48, groups, None).view(rows, 2, 48)
    for some in ([0], [rows - 1, 3], list(range(7, 30))):
        got = grouped_linear(x[some], weight, 48, groups[some], None)
        assert torch.equal(got.view(-1, 2, 48), together[some])


def test_sets_that_nobody_names_are_not_read(device):
    x, weight, groups, _ = make(9, 2, 64, 32, torch.float32)
    weight[1] = float("nan")
    got = grouped_linear(x.to(device), weight.to(device), 32, groups.to(device), None)
    assert got.isfinite().all()


def test_no_pairs(device):
    x, weight, groups, _ = make(3, 2, 8, 4, torch.float32)
    empty = groups[:, :0].contiguous().to(device)
    assert grouped_linear(x.to(device), weight.to(device), 4, empty, None).shape == (0, 4)
