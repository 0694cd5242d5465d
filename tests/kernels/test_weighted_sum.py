import numpy as np
import pytest
import torch

import specedge_kernels as kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "parts", "width"), [(1, 1, 1), (3, 8, 67), (200, 2, 300), (2, 0, 5)]
)
def test_is_one_float32_chain_in_the_order_of_the_parts(rows, parts, width, dtype, threads):
    """numpy rounds every product and sum by itself."""
    generator = torch.Generator().manual_seed(width)
    y = torch.randn(rows * parts, width, generator=generator).to(dtype)
    weights = torch.rand(rows, parts, generator=generator)
    want = np.zeros((rows, width), np.float32)
    for j in range(parts):
        want += weights[:, j, None].numpy() * y.float().view(rows, parts, width)[:, j].numpy()
    for n_threads in (1, 3):
        threads(n_threads)
        got = kernels.weighted_sum(y, weights)
        assert torch.equal(got, torch.from_numpy(want).to(dtype))


def test_wrong_metadata_is_named():
    with pytest.raises(ValueError, match=r"y: expected .* \[6, any\], got"):
        kernels.weighted_sum(torch.ones(5, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"weights: expected a contiguous float32"):
        kernels.weighted_sum(torch.ones(6, 4), torch.ones(6))
