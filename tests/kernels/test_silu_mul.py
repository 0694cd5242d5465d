import pytest
import torch

import specedge_kernels as kernels


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)]
)
def test_close_to_float64(dtype, tolerance):
    gate_up = (torch.randn(6, 2 * 90, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    gate_up[0, :4] = torch.tensor([0.0, -100, 100, -0.0])
    before = gate_up.clone()
    gate, up = gate_up.double().chunk(2, dim=1)
    got = kernels.silu_mul(gate_up)
    want = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-6)
    assert torch.equal(gate_up, before)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("width", [1000, 1537])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(width, n_threads, threads):
    gate_up = torch.randn(97, 2 * width, generator=torch.Generator().manual_seed(width))
    threads(n_threads)
    together = kernels.silu_mul(gate_up)
    alone = torch.cat([kernels.silu_mul(row[None]) for row in gate_up])
    assert torch.equal(together, alone)


def test_a_number_has_the_same_bits_wherever_it_stands():
    numbers = torch.linspace(-110, 110, 333)
    ones = torch.ones_like(numbers)
    row = kernels.silu_mul(torch.cat((numbers, ones))[None])[0]
    column = kernels.silu_mul(torch.stack((numbers, ones), dim=1))[:, 0]
    assert torch.equal(row, column)


def test_large_infinite_and_missing_numbers_as_in_torch():
    nan, inf = float("nan"), float("inf")
    gate = torch.tensor([200.0, -200.0, 3e38, -3e38, inf, -inf, nan, 0.0, -0.0])
    got = kernels.silu_mul(torch.cat((gate, torch.ones(9)))[None])[0]
    assert torch.equal(got.isnan(), torch.nn.functional.silu(gate).isnan())
    assert torch.equal(got[:5], torch.tensor([200.0, 0, 3e38, 0, inf]))
    assert torch.equal(got[7:].signbit(), torch.tensor([False, True]))


def test_no_rows_and_no_columns():
    assert kernels.silu_mul(torch.zeros(0, 8)).shape == (0, 4)
    assert kernels.silu_mul(torch.zeros(3, 0)).shape == (3, 0)


def test_wrong_metadata_is_named():
    with pytest.raises(ValueError, match="gate_up: expected an even number of columns, got 7"):
        kernels.silu_mul(torch.ones(2, 7))
    with pytest.raises(ValueError, match="gate_up: expected a contiguous float32"):
        kernels.silu_mul(torch.ones(8, 2).T)
