import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from specedge_kernels import reference
from specedge_kernels.gpu.noise import MOST_NOISE, gumbel, most_noise, noise_bits, noise_key
from tests.kernels.hashes import EXTREMES, hash_of, hashes_everywhere

BLOCK = 1024
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@triton.jit
def noise_kernel(hashes, noise, bounds, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(hashes + index, mask=index < n, other=0).to(tl.uint64, bitcast=True)
    tl.store(noise + index, gumbel(bits), mask=index < n)
    tl.store(bounds + index, most_noise(bits), mask=index < n)


@triton.jit
def hash_kernel(seeds, positions, tokens, hashes, n, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    key = noise_key(
        tl.load(seeds + index, mask=index < n, other=0),
        tl.load(positions + index, mask=index < n, other=0),
    )
    bits = noise_bits(key, tl.load(tokens + index, mask=index < n, other=0))
    tl.store(hashes + index, bits.to(tl.int64, bitcast=True), mask=index < n)


def test_noise_equals_the_reference_to_the_last_bit_and_stays_below_its_bounds(device):
    hashes = torch.from_numpy(hashes_everywhere(100_000, np.random.default_rng(1)).view(np.int64))
    n = len(hashes)
    noise, bounds = torch.empty(2, n, device=device)
    grid = (triton.cdiv(n, BLOCK),)
    noise_kernel[grid](hashes.to(device), noise, bounds, n, BLOCK=BLOCK, enable_fp_fusion=False)
    assert torch.equal(noise.cpu(), reference.gumbel_of(hashes))
    assert (noise <= bounds).all()
    assert (noise <= MOST_NOISE.value).all()
    assert (bounds < noise + 0.07)[(noise > 5) & (noise < 15)].all()


def test_hashes_of_all_seeds_positions_and_tokens(device):
    words = [np.random.default_rng(i).permutation(np.array(EXTREMES, np.uint64)) for i in range(3)]
    columns = [torch.from_numpy(w.view(np.int64)).to(device) for w in words]
    n = len(columns[0])
    got = torch.empty(n, dtype=torch.int64, device=device)
    hash_kernel[(1,)](*columns, got, n, BLOCK=triton.next_power_of_2(n))
    assert np.array_equal(got.cpu().numpy().view(np.uint64), hash_of(*words))
