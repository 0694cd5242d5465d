"""Sums are checked to the last bit. Numpy's product of matrices is replaced where that is done:
what it gives for a row depends on the row's place in its matrix.
"""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from specedge_kernels import reference
from specedge_kernels.gpu import linear as gpu

TILE = gpu.ProductTile(rows=16, outputs=32, inputs=128, warps=4, stages=2)
TALL = gpu.ProductTile(rows=16, outputs=128, inputs=128, warps=4, stages=2)
E4M3 = torch.float8_e4m3fn


@pytest.fixture
def _in_order(device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_in_order)


def dot_in_order(_, a, b, total, *__):
    product = np.einsum("mk,kn->mn", a.data, b.data)
    return TensorHandle(product + total.data, total.dtype.scalar)


def case(rows, outputs, inputs, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    return x, torch.randn(outputs, inputs, generator=generator).to(dtype)


def multiply(device, x, weight, bias=None, scales=None, tile=TILE):
    given = [None if t is None else t.to(device) for t in (x, weight, bias, scales)]
    return gpu.launch(*given, tile).cpu()


@pytest.mark.every_value
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 1, 1), (3, 33, 100), (17, 32, 128), (16, 65, 1024), (2, 7, 2100), (20, 40, 1030)],
)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-23), (torch.float16, 2**-11)])
def test_equals_float64(device, rows, outputs, inputs, dtype, rounding):
    x, weight = case(rows, outputs, inputs, dtype)
    bias = torch.linspace(-9, 9, outputs).to(dtype)
    want = x.double() @ weight.double().T + bias
    got = multiply(device, x, weight, bias)
    assert got.dtype == dtype
    sizes = x.abs().double() @ weight.abs().double().T
    assert ((got - want).abs() <= 1e-6 * sizes + rounding * want.abs()).all()
    assert (got - reference.linear(x, weight, outputs, bias)).norm() <= 2e-3 * want.norm()


def test_bfloat16_is_summed_in_float32_and_rounded_once(device):
    x, weight = case(5, 33, 1100, torch.bfloat16)
    want = x.double() @ weight.double().T
    error = (multiply(device, x, weight) - want).abs()
    # The interpreter cuts bits off where a card rounds.
    assert (error <= 2**-7 * want.abs() + 1e-4).all()


def test_float8_has_a_scale_of_each_block(device):
    outputs, inputs = 130, 200
    x, weight = case(3, outputs, inputs)
    scales = torch.logspace(-3, 2, 4).view(2, 2)
    stored = weight.to(E4M3)
    blocks = scales.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    values = stored.double() * blocks[:outputs, :inputs]
    want, sizes = x.double() @ values.T, x.abs().double() @ values.abs().T
    got = multiply(device, x, stored, scales=scales, tile=TALL)
    assert ((got - want).abs() <= 1e-6 * sizes).all()
    got = reference.linear(x, stored, outputs, scales=scales)
    assert ((got - want).abs() <= 1e-6 * sizes).all()


@pytest.mark.usefixtures("_in_order")
@pytest.mark.parametrize("scaled", [False, True])
def test_a_row_has_the_same_bits_alone_and_in_any_batch_and_tile(device, scaled):
    inputs = 2200
    x, weight = case(40, 130, inputs)
    scales = torch.rand(2, 18) if scaled else None
    weight = weight.to(E4M3) if scaled else weight
    bias = torch.randn(130)
    whole = multiply(device, x, weight, bias, scales)
    for first, end in ((0, 1), (7, 8), (39, 40), (0, 8), (5, 40)):
        for tile in (TILE, TALL):
            part = multiply(device, x[first:end], weight, bias, scales, tile)
            assert torch.equal(part, whole[first:end])


def test_what_lies_around_the_operands_is_not_seen(device):
    x, weight = case(3, 30, 70)
    want = multiply(device, x, weight)
    around = torch.full((40, 30 * 70), float("nan"))
    around.view(-1)[: x.numel()] = x.view(-1)
    huge = torch.full((64, 70), float("inf"))
    huge[:30] = weight
    beside = around.view(-1)[: x.numel()].view(3, 70)
    assert torch.equal(multiply(device, beside, huge[:30]), want)


def test_a_row_that_is_not_finite_is_alone(device):
    x, weight = case(4, 9, 130)
    good = multiply(device, x, weight)
    x[2, 129] = float("nan")
    x[3, 0] = 1e38
    got = multiply(device, x, weight)
    assert torch.equal(got[:2], good[:2])
    assert got[2].isnan().all()


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 5, 9), (3, 0, 9), (3, 5, 0)])
def test_nothing_times_nothing_is_the_bias(device, rows, outputs, inputs):
    x, weight = case(rows, outputs, inputs)
    bias = torch.arange(outputs).float()
    assert torch.equal(multiply(device, x, weight, bias), bias.expand(rows, outputs))
