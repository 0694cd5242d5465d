import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.silu_mul import BLOCK_ELEMENTS, silu_mul


@pytest.mark.every_value
@pytest.mark.parametrize("width", [1, 90, 2 * BLOCK_ELEMENTS + 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2**-9)])
def test_equals_the_reference(width, dtype, tolerance, device):
    gate_up = torch.randn(3, 2 * width, generator=torch.Generator().manual_seed(width)) * 10
    gate_up[0, 0] = -100
    gate_up = gate_up.to(dtype)
    got = silu_mul(gate_up.to(device))
    torch.testing.assert_close(got.cpu(), reference.silu_mul(gate_up), rtol=tolerance, atol=1e-5)


def test_no_rows(device):
    assert silu_mul(torch.zeros(0, 8, device=device)).shape == (0, 4)
