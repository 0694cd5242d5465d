import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import QuantizedWeight
from specedge_kernels.gpu import grouped_quantized_linear as gpu
from specedge_kernels.gpu.quantized_linear import quantized_linear
from specedge_kernels.quantized import FORMS
from tests.kernels.quantized_cases import KINDS, NAMES, dequantized, random_stored

N_SETS = 4


def stored_sets(parts, inputs):
    """Of each set its parts {kind: outputs}."""
    return [
        [(random_stored(kind, size, inputs, seed=e), kind) for kind, size in parts.items()]
        for e in range(N_SETS)
    ]


def packed_sets(stored):
    return [
        QuantizedWeight.concatenated([kernels.pack_quantized(*part) for part in parts])
        for parts in stored
    ]


def rows_of(rows, per_row, inputs, dtype=torch.float32):
    """Set 1 is never named, set 2 by most pairs, some pairs name none."""
    generator = torch.Generator().manual_seed(rows)
    groups = torch.randint(-1, N_SETS, (rows, per_row), generator=generator, dtype=torch.int32)
    groups[groups == 1] = 2
    return torch.randn(rows, inputs, generator=generator).to(dtype), groups


def multiply(device, x, weight, groups, bias=None):
    packed, bias = weight.packed.to(device), None if bias is None else bias.to(device)
    kinds, sizes = list(weight.kinds), list(weight.sizes)
    on_device = x.to(device), groups.to(device)
    return gpu.grouped_quantized_linear(
        on_device[0], packed, kinds, sizes, on_device[1], bias, False
    ).cpu()


def chosen(every, groups):
    """every [N, E, M] -> [N k, M], zeros where no set is named."""
    index = groups.clamp(min=0).long()[..., None].expand(-1, -1, every.shape[2])
    return every.gather(1, index).masked_fill((groups < 0)[..., None], 0).flatten(0, 1)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_equals_float64_on_the_weights_as_they_are_stored(device, kind):
    inputs = 96 if FORMS[kind].group == 1 else 256
    stored = stored_sets({kind: 13}, inputs)
    weight = QuantizedWeight.stacked(packed_sets(stored))
    values = torch.stack([dequantized(*parts[0]) for parts in stored]).double()
    x, groups = rows_of(5, 2, inputs)
    bias = torch.linspace(-1, 1, N_SETS * 13).view(N_SETS, 13)
    want = chosen(torch.einsum("nk,emk->nem", x.double(), values) + bias, groups)
    sizes = chosen(torch.einsum("nk,emk->nem", x.abs().double(), values.abs()), groups)
    error = multiply(device, x, weight, groups, bias) - want
    assert (error.abs() <= 1e-6 * sizes + 2**-23 * want.abs()).all()


def test_a_row_has_the_bits_of_quantized_linear(device):
    """With more inputs than a chunk has, and more pairs of one set than a tile has."""
    sets = packed_sets(stored_sets({2: 9}, 1056))
    x, groups = rows_of(17, 1, 1056, torch.bfloat16)
    groups[:] = 2
    want = quantized_linear(x.to(device), sets[2].packed.to(device), [2], [9], False, None).cpu()
    assert torch.equal(multiply(device, x, QuantizedWeight.stacked(sets), groups), want)


def test_a_pair_has_the_same_bits_alone_and_in_any_batch(device):
    """Of sets that are parts of two formats."""
    weight = QuantizedWeight.stacked(packed_sets(stored_sets({2: 70, 39: 9}, 32)))
    x, groups = rows_of(19, 2, 32, torch.bfloat16)
    together = multiply(device, x, weight, groups).view(19, 2, 79)
    for some in ([0], [18, 3]):
        alone = multiply(device, x[some], weight, groups[some])
        assert torch.equal(alone.view(-1, 2, 79), together[some])


def test_sets_that_nobody_names_are_not_read(device):
    weight = QuantizedWeight.stacked(packed_sets(stored_sets({2: 9}, 64)))
    weight.packed[1] = 0x7C
    x, groups = rows_of(6, 2, 64)
    assert multiply(device, x, weight, groups).isfinite().all()


@pytest.mark.parametrize(("per_row", "outputs", "inputs"), [(0, 5, 64), (2, 0, 64), (2, 5, 0)])
def test_nothing_times_nothing_is_the_bias(device, per_row, outputs, inputs):
    weight = QuantizedWeight.stacked(packed_sets(stored_sets({2: outputs}, inputs)))
    x, groups = rows_of(3, per_row, inputs)
    bias = torch.arange(N_SETS * outputs).float().view(N_SETS, outputs)
    got = multiply(device, x, weight, groups, bias)
    want = bias[groups.clamp(min=0).long()].masked_fill((groups < 0)[..., None], 0)
    assert torch.equal(got, want.view(3 * per_row, outputs))
