import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1), (7, 64), (64, 63), (129, 65), (300, 200), (576, 192)]  # K, M


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_equals_a_float64_product(dtype, inputs, outputs):
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    panels = kernels.pack_linear(weight)
    for rows in (0, 1, 2, 5, 6, 7, 8, 13, 100):
        x = torch.randn(rows, inputs, generator=generator)
        want = x.double() @ weight.double().T
        got = kernels.linear(x, panels, outputs)
        assert got.shape == (rows, outputs)
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 1e-6 * want.norm()


def test_each_output_is_one_float32_chain_in_increasing_k():
    # 2^24 + 1 is lost in float32, so any other order or a wider sum would show.
    weight = torch.ones(64, 200)
    x = torch.ones(3, 200)
    x[:, 0] = 2**24
    x[:, 199] = -(2**24)
    assert (kernels.linear(x, kernels.pack_linear(weight), 64) == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_with_any_threads(dtype, threads):
    generator = torch.Generator().manual_seed(1)
    inputs, outputs = 333, 400
    panels = kernels.pack_linear(torch.randn(outputs, inputs, generator=generator).to(dtype))
    x = torch.randn(200, inputs, generator=generator)
    threads(1)
    alone = torch.cat([kernels.linear(row[None], panels, outputs) for row in x])
    for n_threads in (1, 2, 5):
        threads(n_threads)
        for rows in (2, 3, 4, 5, 6, 7, 11, 96, 97, 200):
            assert torch.equal(kernels.linear(x[:rows], panels, outputs), alone[:rows])


def test_packing_round_trips_through_the_reference():
    weight = torch.randn(70, 9)
    panels = kernels.pack_linear(weight)
    assert panels.shape == (2, 9, 64)
    assert (panels[1, :, 6:] == 0).all()
    assert torch.equal(panels[0, :, 3], weight[3])
    assert torch.allclose(reference.linear(torch.eye(9), panels, 70), weight.T)


def test_poisoned_padding_is_never_returned():
    panels = kernels.pack_linear(torch.ones(65, 4))
    panels[1, :, 1:] = float("nan")
    assert (kernels.linear(torch.ones(3, 4), panels, 65) == 4).all()


def test_wrong_metadata_is_named():
    panels = kernels.pack_linear(torch.ones(65, 4))
    with pytest.raises(ValueError, match=r"weight: expected .* \[3, 4, 64\], got .* \[2, 4, 64\]"):
        kernels.linear(torch.ones(1, 4), panels, 129)
    with pytest.raises(ValueError, match="x: expected a contiguous float32"):
        kernels.linear(torch.ones(1, 4).half(), panels, 65)
    with pytest.raises(ValueError, match="x: expected a contiguous float32"):
        kernels.linear(torch.ones(4, 2).T, panels, 65)
    with pytest.raises(ValueError, match=r"weight: expected a tensor \[M, K\]"):
        kernels.pack_linear(torch.ones(4))


def test_a_bias_is_added_last():
    panels, x, bias = kernels.pack_linear(torch.randn(70, 9)), torch.randn(3, 9), torch.randn(70)
    want = kernels.linear(x, panels, 70) + bias
    assert torch.equal(kernels.linear(x, panels, 70, bias), want)
    with pytest.raises(ValueError, match=r"bias: expected .* \[70\], got .* \[69\]"):
        kernels.linear(x, panels, 70, bias[:69])
    with pytest.raises(ValueError, match="scales: expected none on a CPU"):
        kernels.linear(x, panels, 70, scales=torch.ones(1, 1))
