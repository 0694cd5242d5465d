import numpy as np
import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import QuantizedWeight, reference
from specedge_kernels.quantized import FORMS
from tests.kernels.quantized_cases import GGML, KINDS, NAMES, dequantized, random_stored, set_half

every_format = pytest.mark.parametrize("kind", KINDS, ids=NAMES)
where_activations_are_rounded = pytest.mark.parametrize(
    "kind", GGML, ids=lambda kind: FORMS[kind].name
)
WIDTHS = (1, 8, 13, 16, 24, 70, 136)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def activations(rows, inputs, seed=0):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def rounded(x):
    """x [N, K] with each 32 of a row rounded to 255 levels, as float64; in numpy."""
    blocks = x.numpy().reshape(len(x), -1, 32) if len(x) else np.zeros((0, 1, 32), np.float32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / largest))
    return torch.from_numpy(codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)


def inputs_of(kind):
    return [n for n in (32, 96, 256, 576, 768) if n % FORMS[kind].inputs == 0]


@every_format
def test_dequantized_equals_gguf_to_the_bit(kind):
    stored = random_stored(kind, 37, 512)
    stored[3] = 0
    stored[4] = 255
    want, got = dequantized(stored, kind), kernels.dequantize(stored, kind)
    assert got.dtype == torch.float32
    assert torch.equal(got.view(torch.int32)[:4], want.view(torch.int32)[:4])
    assert torch.equal(got.view(torch.int32)[5:], want.view(torch.int32)[5:])
    torch.testing.assert_close(got[4], want[4], rtol=0, atol=0, equal_nan=True)
    some = torch.tensor([5, 0, 36, 5])
    assert torch.equal(kernels.dequantize(stored[some], kind), got[some])


@every_format
def test_packing_keeps_every_value(kind):
    for outputs in WIDTHS:
        stored = random_stored(kind, outputs, 512, seed=outputs)
        weight = kernels.pack_quantized(stored, kind)
        assert (weight.out_features, weight.in_features) == (outputs, 512)
        assert torch.equal(reference.unpack_quantized(weight), dequantized(stored, kind))


@where_activations_are_rounded
def test_equals_a_float64_product_of_rounded_activations(kind):
    for inputs in inputs_of(kind):
        for outputs in WIDTHS:
            stored = random_stored(kind, outputs, inputs, seed=outputs)
            weight = kernels.pack_quantized(stored, kind)
            values = dequantized(stored, kind).double()
            for rows in (0, 1, 3, 4, 5, 8, 66):
                x = activations(rows, inputs, seed=rows)
                got = kernels.quantized_linear(x, weight)
                assert got.shape == (rows, outputs)
                assert got.dtype == torch.float32
                error = (got - rounded(x) @ values.T).abs()
                sizes = x.abs().double() @ values.abs().T
                assert (error <= 1e-6 * sizes).all()
                assert (got - reference.quantized_linear(x, weight)).norm() <= 2e-6 * sizes.norm()


@every_format
def test_is_close_to_the_product_of_the_activations_themselves(kind):
    inputs = 768
    stored = random_stored(kind, 64, inputs)
    x = activations(8, inputs)
    want = x.double() @ dequantized(stored, kind).double().T
    got = kernels.quantized_linear(x, kernels.pack_quantized(stored, kind))
    assert (got - want).norm() <= 0.01 * want.norm()


@every_format
def test_exact_has_the_bits_of_linear_on_the_dequantized_weight(kind):
    for inputs in inputs_of(kind):
        for outputs in WIDTHS:
            stored = random_stored(kind, outputs, inputs, seed=outputs)
            panels = kernels.pack_linear(dequantized(stored, kind))
            weight = kernels.pack_quantized(stored, kind)
            for rows in (0, 1, 5, 7, 66):
                x = activations(rows, inputs, seed=rows)
                got = kernels.quantized_linear(x, weight, exact=True)
                assert torch.equal(got, kernels.linear(x, panels, outputs))


@every_format
@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_with_any_threads(kind, exact, threads):
    inputs, outputs = 256, 75
    weight = kernels.pack_quantized(random_stored(kind, outputs, inputs), kind)
    x = activations(70, inputs)
    threads(1)
    alone = torch.cat([kernels.quantized_linear(row[None], weight, exact=exact) for row in x])
    for n_threads in (1, 2):
        threads(n_threads)
        for rows in range(2, 71):
            got = kernels.quantized_linear(x[:rows], weight, exact=exact)
            assert torch.equal(got, alone[:rows])
    assert torch.equal(kernels.quantized_linear(x[60:], weight, exact=exact), alone[60:])


@where_activations_are_rounded
def test_the_largest_integers_do_not_overflow(kind):
    """Codes and activations at both ends: 16-bit sums of products come closest to their limit."""
    inputs = 512
    groups = np.zeros((17, inputs // FORMS[kind].inputs, FORMS[kind].stored_bytes), np.uint8)
    groups[:] = np.array([0x00, 0xFF, 0x80, 0x7F, 0x81, 0x0F, 0xF0, 0x70, 0x07])[
        np.arange(17) % 9, None, None
    ]
    for i in range(FORMS[kind].halves):
        set_half(groups, kind, i, [[1.0]])
    if not FORMS[kind].halves:
        groups[..., 0] = 127
    stored = torch.from_numpy(groups.reshape(17, -1))
    weight = kernels.pack_quantized(stored, kind)
    values = dequantized(stored, kind).double()
    for x in (torch.ones(5, inputs), -torch.ones(1, inputs), activations(9, inputs).sign()):
        want = x.double() @ values.T
        assert torch.equal(kernels.quantized_linear(127 * x, weight).double(), 127 * want)


@pytest.mark.parametrize("x", [0.5, -0.5, 1.5, 2.5, 126.5, -126.5])
def test_activations_are_rounded_to_nearest_even(x):
    values = torch.zeros(1, 32)
    values[0, :2] = torch.tensor([127.0, x])
    got = kernels.quantized_linear(values, identity(8))
    assert got[0, 1] == torch.tensor(x).round()


def identity(kind):
    """A packed identity of 32 inputs in Q8_0."""
    stored = np.zeros((32, 1, 34), np.uint8)
    set_half(stored, kind, 0, np.ones((32, 1)))
    stored[np.arange(32), 0, 2 + np.arange(32)] = 1
    return kernels.pack_quantized(torch.from_numpy(stored.reshape(32, -1)), kind)


def test_tiny_huge_and_zero_activations():
    x = torch.zeros(6, 32)
    x[1] = -0.0
    x[2, :3] = torch.tensor([1e-40, -3e-31, 7e-31])  # below 2^-100: counts as zero
    x[3, :3] = torch.tensor([2.0**-99, -(2.0**-99), 2.0**-100])
    x[4, :3] = torch.tensor([3e38, -3e38, 1e38])
    got = kernels.quantized_linear(x, identity(8))
    assert (got[:3] == 0).all()
    step = x.abs().amax(1, keepdim=True) / 127
    assert ((got - x).abs()[3:] <= step[3:] / 2).all()
    assert torch.equal(got, reference.quantized_linear(x, identity(8)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@where_activations_are_rounded
def test_a_row_that_is_not_finite_is_nan_and_alone(bad, kind):
    weight = kernels.pack_quantized(random_stored(kind, 40, 512), kind)
    x = activations(6, 512)
    good = kernels.quantized_linear(x, weight)
    x[3, 77] = bad
    got = kernels.quantized_linear(x, weight)
    assert got[3].isnan().all()
    others = [0, 1, 2, 4, 5]
    assert torch.equal(got[others], good[others])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if FORMS[kind].halves])
def test_an_output_whose_scale_is_not_finite_is_not_finite_and_alone(bad, kind):
    stored = random_stored(kind, 40, 512).view(40, -1, FORMS[kind].stored_bytes)
    x = activations(6, 512)
    good = kernels.quantized_linear(x, kernels.pack_quantized(stored.flatten(1), kind))
    for which in range(FORMS[kind].halves):
        spoilt = stored.clone()
        set_half(spoilt.numpy()[21, 1:2], kind, which, [bad])
        got = kernels.quantized_linear(x, kernels.pack_quantized(spoilt.flatten(1), kind))
        assert not got[:, 21].isfinite().any()
        others = [i for i in range(40) if i != 21]
        assert torch.equal(got[:, others], good[:, others])


def test_extreme_scales():
    """The smallest and the largest float16, and subnormal ones."""
    numbers = [0.0, -0.0, 2.0**-24, -(2.0**-24), 6e-5, 65504.0, -65504.0]
    for kind in KINDS:
        if not FORMS[kind].halves:
            continue
        stored = random_stored(kind, len(numbers), 256).view(len(numbers), -1)
        groups = stored.numpy().reshape(len(numbers), -1, FORMS[kind].stored_bytes)
        for i in range(FORMS[kind].halves):
            set_half(groups, kind, i, np.array(numbers)[:, None])
        weight = kernels.pack_quantized(stored, kind)
        x = activations(3, 256)
        values = dequantized(stored, kind)
        error = (kernels.quantized_linear(x, weight) - rounded(x) @ values.double().T).abs()
        assert (error <= 1e-6 * (x.abs().double() @ values.abs().double().T)).all()
        exact = kernels.linear(x, kernels.pack_linear(values), len(numbers))
        assert torch.equal(kernels.quantized_linear(x, weight, exact=True), exact)


def test_every_exponent_of_mxfp4():
    stored = random_stored(39, 256, 64)
    stored[:, 0] = torch.arange(256)
    values = dequantized(stored, 39)
    assert torch.equal(kernels.dequantize(stored, 39), values)
    weight = kernels.pack_quantized(stored, 39)
    x = torch.cat((torch.ones(1, 32), torch.zeros(1, 32)), 1)
    exact = kernels.linear(x, kernels.pack_linear(values), 256)
    got = kernels.quantized_linear(x, weight, exact=True)
    torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True)
    small = slice(0, 250)  # beyond, sums overflow
    torch.testing.assert_close(kernels.quantized_linear(x, weight)[:, small], exact[:, small])


@pytest.mark.parametrize("kind", [256, 257])
def test_activations_are_never_rounded_for_float8(kind):
    stored, x = random_stored(kind, 21, 384), activations(5, 384)
    weight, values = kernels.pack_quantized(stored, kind), dequantized(stored, kind).double()
    got = kernels.quantized_linear(x, weight)
    sizes = x.abs().double() @ values.abs().T
    assert ((got - x.double() @ values.T).abs() <= 1e-6 * sizes).all()
    assert torch.equal(got, kernels.quantized_linear(x, weight, exact=True))
    assert (got - reference.quantized_linear(x, weight)).norm() <= 1e-6 * sizes.norm()


def test_every_code_of_float8():
    codes = torch.arange(256, dtype=torch.uint8)
    stored = torch.zeros(256, 36, dtype=torch.uint8)
    stored[:, :4] = torch.tensor([0.75]).view(torch.uint8)
    stored[:, 4:] = torch.stack([codes.roll(i) for i in range(32)], 1)
    got = reference.unpack_quantized(kernels.pack_quantized(stored, 257))
    want = 0.75 * codes.view(torch.float8_e4m3fn).float()
    want = torch.stack([want.roll(i) for i in range(32)], 1)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        kernels.dequantize(stored, 257), want, rtol=0, atol=0, equal_nan=True
    )
    row = kernels.quantized_linear(torch.eye(32)[3:4], kernels.pack_quantized(stored[128:], 257))
    numbers = ~want[128:].isnan().any(1)
    assert torch.equal(row[0, numbers], want[128:, 3][numbers])


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_weights_of_several_formats_stand_side_by_side(exact):
    sizes = {12: 40, 14: 13, 2: 8, 256: 11, 8: 21, 39: 16}
    stored = {kind: random_stored(kind, size, 512) for kind, size in sizes.items()}
    weights = [kernels.pack_quantized(rows, kind) for kind, rows in stored.items()]
    both = QuantizedWeight.concatenated(weights)
    assert both.out_features == 109
    x = activations(5, 512)
    want = torch.cat([kernels.quantized_linear(x, w, exact=exact) for w in weights], 1)
    assert torch.equal(kernels.quantized_linear(x, both, exact=exact), want)
    values = torch.cat([dequantized(rows, kind) for kind, rows in stored.items()])
    assert torch.equal(reference.unpack_quantized(both), values)


def test_whole_panels_of_one_format_become_one_part():
    stored = random_stored(12, 45, 256)
    parts = [kernels.pack_quantized(rows, 12) for rows in stored.split([16, 24, 5])]
    one, whole = QuantizedWeight.concatenated(parts), kernels.pack_quantized(stored, 12)
    assert one.sizes == (45,)
    assert torch.equal(one.packed, whole.packed)
    parts = [kernels.pack_quantized(rows, 12) for rows in stored.split([5, 40])]
    assert QuantizedWeight.concatenated(parts).sizes == (5, 40)


def test_rows_are_packed_in_the_order_they_come():
    stored = random_stored(14, 24, 256)
    order = torch.arange(24).view(2, 6, 2).transpose(1, 2).flatten()  # llama's permutation
    weight = kernels.pack_quantized(stored[order], 14)
    assert torch.equal(reference.unpack_quantized(weight), dequantized(stored, 14)[order])


@every_format
@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_nothing_times_nothing_is_zero(kind, exact):
    for outputs, inputs in ((0, 256), (9, 0), (0, 0)):
        weight = kernels.pack_quantized(random_stored(kind, outputs, inputs), kind)
        got = kernels.quantized_linear(torch.ones(3, inputs), weight, exact=exact)
        assert torch.equal(got, torch.zeros(3, outputs))
    assert kernels.dequantize(random_stored(kind, 0, 256), kind).shape == (0, 256)


def test_wrong_arguments_are_named():
    stored = random_stored(2, 8, 64)
    weight = kernels.pack_quantized(stored, 2)
    x = torch.ones(3, 64)
    with pytest.raises(ValueError, match=r"kind: expected one of 2 \(Q4_0\), .*, got 99"):
        kernels.pack_quantized(stored, 99)
    with pytest.raises(ValueError, match="rows of a multiple of 34 bytes, got 36"):
        kernels.pack_quantized(stored, 8)
    with pytest.raises(ValueError, match="stored: expected a contiguous uint8"):
        kernels.dequantize(stored.float(), 2)
    with pytest.raises(ValueError, match=r"x: expected .* \[any, 64\], got .* \[3, 32\]"):
        kernels.quantized_linear(x[:, :32].contiguous(), weight)
    wrong = [
        QuantizedWeight(weight.packed, (2,), (9,), 64),
        QuantizedWeight(weight.packed, (3,), (8,), 64),
        QuantizedWeight(weight.packed[1:], (2,), (8,), 64),
        QuantizedWeight(weight.packed.short(), (2,), (8,), 64),
        QuantizedWeight(weight.packed, (2, 2), (8, 1), 64),
    ]
    for other in wrong:
        with pytest.raises(ValueError, match="packed: expected a contiguous uint8"):
            kernels.quantized_linear(x, other)
    with pytest.raises(ValueError, match="sizes: expected 0 or more, got -8"):
        kernels.quantized_linear(x, QuantizedWeight(weight.packed, (2, 2), (16, -8), 64))
    with pytest.raises(ValueError, match="in_features: expected a multiple of 256, got 64"):
        kernels.quantized_linear(x, QuantizedWeight(weight.packed, (12,), (8,), 64))
    small = kernels.pack_quantized(stored[:, :18].contiguous(), 2)
    with pytest.raises(ValueError, match="weights of the same inputs, got 64 and 32"):
        QuantizedWeight.concatenated([weight, small])


@every_format
def test_rows_of_a_packed_weight_are_unpacked_alone(kind):
    weight = kernels.pack_quantized(random_stored(kind, 21, 256), kind)
    ids = torch.tensor([20, 0, 7, 8, 20])
    values = reference.unpack_quantized(weight)[ids]
    assert torch.equal(reference.unpack_rows(weight, ids), values)


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
def test_a_bias_is_added_last(exact):
    weight = kernels.pack_quantized(random_stored(12, 21, 256), 12)
    x, bias = activations(3, 256), torch.linspace(-1, 1, 21)
    want = kernels.quantized_linear(x, weight, exact=exact) + bias
    assert torch.equal(kernels.quantized_linear(x, weight, exact=exact, bias=bias), want)
