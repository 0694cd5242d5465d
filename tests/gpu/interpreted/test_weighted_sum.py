import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.weighted_sum import BLOCK_COLUMNS, weighted_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("parts", "width"), [(1, 1), (8, 70), (3, BLOCK_COLUMNS + 3)])
def test_has_the_bits_of_the_reference(parts, width, dtype, device):
    generator = torch.Generator().manual_seed(width)
    y = torch.randn(4 * parts, width, generator=generator).to(dtype)
    weights = torch.rand(4, parts, generator=generator)
    got = weighted_sum(y.to(device), weights.to(device))
    assert torch.equal(got.cpu(), reference.weighted_sum(y, weights))
