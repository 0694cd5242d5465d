import pytest
import torch
import torch.nn.functional as F

import specedge_kernels as kernels


def float64(x, weight, eps):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
def test_close_to_float64(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(7, 100, generator=generator) * torch.logspace(-3, 3, 7)[:, None]).to(dtype)
    weight = torch.randn(100, generator=generator).to(dtype)
    before = x.clone()
    got = kernels.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got.double(), float64(x, weight, 1e-5), rtol=tolerance, atol=1e-6)
    assert torch.equal(x, before)


def test_the_residual_grows_in_place_and_bits_are_those_of_torch():
    x, delta, weight = torch.randn(5, 577), torch.randn(5, 577), torch.randn(577)
    total = x + delta
    got = kernels.rms_norm(x, weight, 1e-6, delta)
    assert torch.equal(x, total)
    assert torch.equal(got, F.rms_norm(total, (577,), weight, 1e-6))


def test_a_row_has_the_same_bits_alone_and_in_a_batch():
    x, weight = torch.randn(100, 576), torch.randn(576)
    whole = kernels.rms_norm(x, weight, 1e-6)
    for row in (0, 41, 99):
        assert torch.equal(kernels.rms_norm(x[row : row + 1], weight, 1e-6)[0], whole[row])


def test_no_rows():
    assert kernels.rms_norm(torch.zeros(0, 8), torch.ones(8), 1e-6).shape == (0, 8)


def test_wrong_metadata_is_named():
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"weight: expected a contiguous float32 .* shape \[8\]"):
        kernels.rms_norm(x, weight[:7], 1e-6)
    with pytest.raises(ValueError, match="weight: expected a contiguous bfloat16"):
        kernels.rms_norm(x.bfloat16(), weight, 1e-6)
    with pytest.raises(ValueError, match=r"delta: expected .* shape \[2, 8\], got .* \[1, 8\]"):
        kernels.rms_norm(x, weight, 1e-6, x[:1])
