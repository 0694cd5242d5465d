"""Sums are checked to the last bit. Numpy's product of matrices is replaced where that is done:
what it gives for a row depends on the row's place in its matrix.
"""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import specedge_kernels as kernels
from specedge_kernels import QuantizedWeight
from specedge_kernels.gpu import quantized_linear as gpu
from specedge_kernels.gpu.sum_chunks import chunk_inputs
from specedge_kernels.quantized import FORMS
from tests.kernels.quantized_cases import GGML, KINDS, NAMES, dequantized, random_stored, set_half

every_format = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


@pytest.fixture
def _in_order(device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_in_order)


def dot_in_order(_, a, b, total, *__):
    product = np.einsum("mk,kn->mn", a.data, b.data)
    return TensorHandle(product + total.data, total.dtype.scalar)


def multiply(device, x, weight, bias=None):
    packed, bias = weight.packed.to(device), None if bias is None else bias.to(device)
    kinds, sizes = list(weight.kinds), list(weight.sizes)
    return gpu.quantized_linear(x.to(device), packed, kinds, sizes, False, bias).cpu()


def activations(rows, inputs, dtype=torch.float32):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.mark.every_value
@every_format
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, 2**-23), (torch.float16, 2**-11), (torch.bfloat16, 2**-7)],
)
def test_equals_float64_on_the_weights_as_they_are_stored(device, kind, dtype, rounding):
    # The interpreter cuts bits of bfloat16 off where a card rounds.
    rows, outputs, inputs = 3, 13, max(64, 2 * FORMS[kind].inputs)
    stored = random_stored(kind, outputs, inputs)
    values = dequantized(stored, kind).double()
    x, bias = activations(rows, inputs, dtype), torch.linspace(-1, 1, outputs).to(dtype)
    want = x.double() @ values.T + bias
    got = multiply(device, x, kernels.pack_quantized(stored, kind), bias)
    assert got.dtype == dtype
    sizes = x.abs().double() @ values.abs().T
    assert ((got - want).abs() <= 1e-6 * sizes + rounding * want.abs()).all()


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (64, 64), (70, 96), (9, 1120)])
def test_any_number_of_outputs_and_blocks(device, outputs, inputs):
    stored = random_stored(3, outputs, inputs)
    values, x = dequantized(stored, 3).double(), activations(3, inputs)
    error = multiply(device, x, kernels.pack_quantized(stored, 3)) - x.double() @ values.T
    assert (error.abs() <= 1e-6 * (x.abs().double() @ values.abs().T)).all()


@pytest.mark.usefixtures("_in_order")
# Minima, eight bits, two scales a block, a scale for four.
@pytest.mark.parametrize("kind", [3, 8, 14, 256])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(device, kind, monkeypatch):
    inputs, outputs = 1024 + 256, 10
    weight = kernels.pack_quantized(random_stored(kind, outputs, inputs), kind)
    x, bias = activations(20, inputs), torch.randn(outputs)
    # One tile of rows is split into chunks, two are not.
    monkeypatch.setattr(gpu, "PROGRAMS", 1)
    whole = multiply(device, x, weight, bias)
    for first, end in ((0, 1), (15, 17)):
        assert torch.equal(multiply(device, x[first:end], weight, bias), whole[first:end])


def test_weights_of_several_formats_stand_side_by_side(device):
    parts = {12: 40, 14: 13, 2: 8}
    stored = {kind: random_stored(kind, size, 256) for kind, size in parts.items()}
    weights = [kernels.pack_quantized(rows, kind) for kind, rows in stored.items()]
    x, bias = activations(2, 256), torch.randn(61)
    biases = bias.split([40, 13, 8])
    want = [multiply(device, x, *pair) for pair in zip(weights, biases, strict=True)]
    got = multiply(device, x, QuantizedWeight.concatenated(weights), bias)
    assert torch.equal(got, torch.cat(want, 1))


@pytest.mark.parametrize("kind", GGML, ids=lambda kind: FORMS[kind].name)
def test_the_largest_codes_and_every_exponent_are_exact(device, kind):
    groups = np.zeros((17, 256 // FORMS[kind].inputs, FORMS[kind].stored_bytes), np.uint8)
    groups[:] = np.array([0x00, 0xFF, 0x80, 0x7F, 0x81, 0x0F, 0xF0, 0x70, 0x07])[
        np.arange(17) % 9, None, None
    ]
    for i in range(FORMS[kind].halves):
        set_half(groups, kind, i, [[1.0]])
    if not FORMS[kind].halves:
        groups[..., 0] = np.arange(0, 255, 15)[:17, None]
    stored = torch.from_numpy(groups.reshape(17, -1))
    x = torch.zeros(8, 256)
    x[torch.arange(8), torch.tensor([0, 1, 15, 16, 31, 100, 200, 255])] = 1
    want = x.double() @ dequantized(stored, kind).double().T
    got = multiply(device, x.bfloat16(), kernels.pack_quantized(stored, kind)).double()
    assert ((got - want).abs() <= 2**-7 * want.abs()).all()
    assert torch.equal(multiply(device, x, kernels.pack_quantized(stored, kind)).double(), want)


@pytest.mark.parametrize("kind", [256, 257])
def test_every_code_of_float8_is_exact(device, kind):
    form = FORMS[kind]
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 0x7F != 0x7F]
    stored = torch.empty(len(codes), form.stored_bytes, dtype=torch.uint8)
    stored[:, :4] = torch.tensor([0.75]).view(torch.uint8)
    stored[:, 4:] = torch.stack([codes.roll(i) for i in range(form.inputs)], 1)
    x = torch.eye(form.inputs)[[0, 3, 17, form.inputs - 1]]
    got = multiply(device, x, kernels.pack_quantized(stored, kind))
    assert torch.equal(got, dequantized(stored, kind)[:, [0, 3, 17, form.inputs - 1]].T)


def test_a_row_and_an_output_that_are_not_finite_are_alone(device):
    stored, x = random_stored(2, 40, 96), activations(4, 96)
    good = multiply(device, x, kernels.pack_quantized(stored, 2))
    set_half(stored.numpy().reshape(40, 3, 18)[21, 1:2], 2, 0, [float("inf")])
    x[2, 95] = float("nan")
    got = multiply(device, x, kernels.pack_quantized(stored, 2))
    assert got[2].isnan().all()
    assert not got[:, 21].isfinite().any()
    kept = [i for i in range(40) if i != 21]
    assert torch.equal(got[[0, 1, 3]][:, kept], good[[0, 1, 3]][:, kept])


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 5, 64), (3, 0, 64), (3, 5, 0)])
def test_nothing_times_nothing_is_the_bias(device, rows, outputs, inputs):
    weight = kernels.pack_quantized(random_stored(2, outputs, inputs), 2)
    bias = torch.arange(outputs).float()
    got = multiply(device, activations(rows, inputs), weight, bias)
    assert torch.equal(got, bias.expand(rows, outputs))


def test_chunks_follow_the_inputs_alone():
    for inputs in (1, 1024, 5120, 17408, 100_000):
        chunk = chunk_inputs(inputs)
        assert chunk % 256 == 0
        assert -(-inputs // chunk) <= 8
