import pytest
import torch

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 15, 64, 65, 577])
def test_the_residual_grows_in_place_and_what_is_stored_is_normed(dtype, width):
    generator = torch.Generator().manual_seed(width)
    x, delta, weight = torch.randn(3, 5, width, generator=generator).to(dtype)
    weight = weight[0].contiguous()
    total = x + delta
    got = kernels.rms_norm(x, weight, 1e-6, delta)
    assert torch.equal(x, total)
    assert torch.equal(got, kernels.rms_norm(total, weight, 1e-6))
    want = float64(total, weight, 1e-6)
    torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("width", [96, 576, 577, 4096, 16384])
def test_a_row_has_the_same_bits_alone_and_in_a_batch_on_many_threads(width, threads):
    x, weight = torch.randn(65, width), torch.randn(width)
    threads(3)
    whole = kernels.rms_norm(x, weight, 1e-6)
    threads(1)
    alone = torch.cat([kernels.rms_norm(row[None], weight, 1e-6) for row in x])
    assert torch.equal(whole, alone)


def test_nan_and_infinity_stay_in_their_row():
    x = torch.ones(4, 70)
    x[1, 69], x[2, 3] = float("nan"), float("inf")
    got = kernels.rms_norm(x, torch.ones(70), 1e-6)
    assert got[1].isnan().all()
    assert got[2, 3].isnan()
    assert torch.equal(got[0], got[3])
    assert (got[0] - 1).abs().max() < 1e-6


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
