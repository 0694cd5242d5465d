"""Products of rows with several sets of weights, as floats and quantised."""

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import QuantizedWeight
from tests.kernels.quantized_cases import dequantized, random_stored

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
N_SETS = 7


def random_groups(rows, per_row, generator):
    """Set 2 is never named, set 4 by most rows, some rows name none."""
    groups = torch.randint(-1, N_SETS, (rows, per_row), generator=generator, dtype=torch.int32)
    groups[groups == 2] = 4
    return groups


def float_case(inputs, outputs, dtype):
    generator = torch.Generator().manual_seed(inputs + outputs)
    weight = torch.randn(N_SETS, outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(N_SETS, outputs, generator=generator)
    return weight, torch.stack([kernels.pack_linear(w) for w in weight]), bias


def quantized_case(kinds, sizes, inputs):
    """Each set is parts of these formats."""
    stored = [
        [random_stored(kind, size, inputs, seed=e) for kind, size in zip(kinds, sizes, strict=True)]
        for e in range(N_SETS)
    ]
    sets, values = [], []
    for parts in stored:
        packed = [kernels.pack_quantized(p, kind) for p, kind in zip(parts, kinds, strict=True)]
        sets.append(QuantizedWeight.concatenated(packed))
        floats = [dequantized(p, kind) for p, kind in zip(parts, kinds, strict=True)]
        values.append(torch.cat(floats))
    return sets, QuantizedWeight.stacked(sets), torch.stack(values)


def in_float64(x, weight, groups, bias):
    """[N, k, M] by dense algebra: every set for every row, then the chosen ones."""
    every = torch.einsum("nk,emk->nem", x.double(), weight.double()) + bias.double()
    chosen = groups.clamp(min=0).long()[..., None].expand(-1, -1, weight.shape[1])
    return every.gather(1, chosen).masked_fill((groups < 0)[..., None], 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 64), (200, 130)])
def test_equals_a_float64_product(inputs, outputs, dtype):
    weight, panels, bias = float_case(inputs, outputs, dtype)
    generator = torch.Generator().manual_seed(1)
    for rows, per_row in ((0, 3), (1, 1), (5, 0), (16, 4), (150, 3)):
        x = torch.randn(rows, inputs, generator=generator)
        groups = random_groups(rows, per_row, generator)
        got = kernels.grouped_linear(x, panels, outputs, groups, bias)
        want = in_float64(x, weight, groups, bias).flatten(0, 1)
        assert got.shape == (rows * per_row, outputs)
        assert (got - want).norm() <= 1e-6 * want.norm()
        assert (got[groups.flatten() < 0] == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_has_the_bits_of_linear_with_any_neighbours_and_threads(dtype, threads):
    _, panels, _ = float_case(70, 130, dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(120, 70, generator=generator)
    groups = random_groups(120, 3, generator)
    want = torch.stack([kernels.linear(x, p, 130) for p in panels])  # [E, N, M]
    want = want[groups.long(), torch.arange(120)[:, None]]
    want = want.masked_fill((groups < 0)[..., None], 0).flatten(0, 1)
    for n_threads in (1, 3):
        threads(n_threads)
        assert torch.equal(kernels.grouped_linear(x, panels, 130, groups), want)
        some = torch.tensor([5, 99, 5, 31])
        got = kernels.grouped_linear(x[some], panels, 130, groups[some])
        assert torch.equal(got, want.view(120, 3, 130)[some].flatten(0, 1))


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@pytest.mark.parametrize("kinds", [(2,), (8,), (14,), (12, 14)], ids=str)
def test_a_row_has_the_bits_of_quantized_linear(kinds, exact, threads):
    sizes = [40, 13][: len(kinds)]
    sets, stacked, _ = quantized_case(kinds, sizes, 256)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(90, 256, generator=generator)
    groups = random_groups(90, 2, generator)
    want = torch.stack([kernels.quantized_linear(x, w, exact=exact) for w in sets])
    want = want[groups.long(), torch.arange(90)[:, None]]
    want = want.masked_fill((groups < 0)[..., None], 0).flatten(0, 1)
    for n_threads in (1, 3):
        threads(n_threads)
        assert torch.equal(kernels.grouped_quantized_linear(x, stacked, groups, exact=exact), want)
        got = kernels.grouped_quantized_linear(x[7:8], stacked, groups[7:8], exact=exact)
        assert torch.equal(got, want[14:16])


def test_exact_quantised_sets_equal_a_float64_product():
    _, stacked, values = quantized_case((2, 8), (24, 9), 96)
    generator = torch.Generator().manual_seed(4)
    x, groups = torch.randn(20, 96, generator=generator), random_groups(20, 3, generator)
    bias = torch.randn(N_SETS, 33, generator=generator)
    got = kernels.grouped_quantized_linear(x, stacked, groups, bias, exact=True)
    want = in_float64(x, values, groups, bias).flatten(0, 1)
    assert (got - want).norm() <= 1e-6 * want.norm()


def test_adapters_of_low_rank_are_two_grouped_products():
    """LoRA: rows of users with adapter 0, 1, or none; rank 4."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 4, 48, generator=generator), torch.randn(2, 80, 4, generator=generator)
    down, up = (torch.stack([kernels.pack_linear(w) for w in part]) for part in (a, b))
    x = torch.randn(5, 48, generator=generator)
    adapter = torch.tensor([[0], [-1], [1], [1], [0]], dtype=torch.int32)
    inner = kernels.grouped_linear(x, down, 4, adapter)
    got = kernels.grouped_linear(inner, up, 80, adapter)
    assert (got[1] == 0).all()
    for row, e in ((0, 0), (2, 1), (3, 1), (4, 0)):
        want = b[e].double() @ (a[e].double() @ x[row].double())
        torch.testing.assert_close(got[row].double(), want, rtol=1e-5, atol=1e-4)


def test_sets_that_nobody_names_are_not_read():
    _, panels, _ = float_case(16, 64, torch.float32)
    panels[[0, 2, 6]] = float("nan")
    groups = torch.tensor([[1, 3], [5, 4]], dtype=torch.int32)
    assert kernels.grouped_linear(torch.ones(2, 16), panels, 64, groups).isfinite().all()


def test_wrong_metadata_is_named():
    _, panels, bias = float_case(16, 64, torch.float32)
    x, groups = torch.ones(2, 16), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"groups: expected a contiguous int32 .* \[2, any\]"):
        kernels.grouped_linear(x, panels, 64, groups[:1])
    with pytest.raises(ValueError, match=r"weight: expected .* \[any, 2, 16, 64\], got"):
        kernels.grouped_linear(x, panels, 65, groups)
    with pytest.raises(ValueError, match=r"bias: expected .* \[7, 64\], got"):
        kernels.grouped_linear(x, panels, 64, groups, bias[:6])
    one = kernels.pack_quantized(random_stored(8, 8, 32), 8)
    with pytest.raises(ValueError, match=r"packed: expected \[E, bytes\], got \[272\]"):
        kernels.grouped_quantized_linear(torch.ones(2, 32), one, groups)
    other = kernels.pack_quantized(random_stored(2, 8, 32), 2)
    with pytest.raises(ValueError, match="expected sets of the same formats and shape, got"):
        QuantizedWeight.stacked([one, other])
