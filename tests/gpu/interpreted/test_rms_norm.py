import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.rms_norm import rms_norm


@pytest.mark.every_value
@pytest.mark.parametrize("width", [1, 96, 577, 5120])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2**-9)])
def test_equals_the_reference(width, dtype, tolerance, device):
    x, delta = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    weight = torch.linspace(-1, 2, width).to(dtype)
    grown, ours = x.clone(), x.to(device, copy=True)
    for deltas in ((), (delta,)):
        want = reference.rms_norm(grown, weight, 1e-5, *deltas)
        got = rms_norm(ours, weight.to(device), 1e-5, *(d.to(device) for d in deltas))
        torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=1e-6)
        assert torch.equal(ours.cpu(), grown)
    # What was normalised is the sum as stored, not the sum before it was rounded.
    assert torch.equal(rms_norm(ours, weight.to(device), 1e-5), got)


def test_small_rows_are_held_up_by_eps_and_bits_do_not_depend_on_the_batch(device):
    x = torch.randn(4, 100, device=device) * torch.logspace(-8, 3, 4, device=device)[:, None]
    weight = torch.ones(100, device=device)
    got = rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got.cpu(), reference.rms_norm(x.cpu(), weight.cpu(), 1e-5))
    assert torch.equal(rms_norm(x[2:3].clone(), weight, 1e-5)[0], got[2])


def test_no_rows(device):
    x, weight = torch.zeros(0, 8, device=device), torch.ones(8, device=device)
    assert rms_norm(x, weight, 1e-6).shape == (0, 8)
