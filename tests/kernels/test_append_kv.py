import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def caches(pages, size, heads, dim, dtype, layout):
    shape = (pages, heads, size, dim) if layout == "HND" else (pages, size, heads, dim)
    made = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(2)]
    return [cache.transpose(1, 2) if layout == "HND" else cache for cache in made]


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("page_size", "layout"), [(1, "NHD"), (16, "HND"), (64, "NHD")])
def test_bits_equal_torch_conversion(source, dtype, page_size, layout):
    generator = torch.Generator().manual_seed(page_size)
    pages, heads, dim, rows = 200 // page_size + 1, 3, 20, 40
    special = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-8, 6e-8, 65519]
    )
    k = torch.randn(rows, heads, dim, generator=generator) * 10.0 ** torch.randint(
        -9, 5, (rows, heads, dim), generator=generator
    )
    k[1, 0, :8] = special
    k = k.to(source)
    v = torch.randn(rows, heads, dim, generator=generator).to(source)
    slots = torch.randperm(pages * page_size, generator=generator)[:rows]
    slots[::7] = -1
    want = caches(pages, page_size, heads, dim, dtype, layout)
    got = caches(pages, page_size, heads, dim, dtype, layout)
    reference.append_kv(k, v, *want, slots)
    kernels.append_kv(k, v, *got, slots)
    for a, b in zip(got, want, strict=True):
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        same = a.contiguous().view(bits) == b.contiguous().view(bits)
        assert (same | (a.isnan() & b.isnan())).all()


def test_half_conversion_rounds_every_boundary_as_torch_does():
    # Every half, the middle to its neighbour, and one float32 step to either side of the middle.
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    halves = halves[halves.isfinite()].sort().values
    middles = (halves[1:] + halves[:-1]) / 2
    inf = torch.tensor(float("inf"))
    steps = [middles, middles.nextafter(inf), middles.nextafter(-inf)]
    values = torch.cat([halves, *steps]).view(-1, 1, 1)
    for dtype in FLOATS[1:]:
        cache = torch.zeros(len(values), 1, 1, 1, dtype=dtype)
        kernels.append_kv(values, values, cache, cache.clone(), torch.arange(len(values)))
        want = values.view(-1).to(dtype)
        assert torch.equal(cache.view(-1).view(torch.int16), want.view(torch.int16))


def test_no_rows():
    k_cache, v_cache = caches(2, 4, 1, 8, torch.float32, "NHD")
    empty = torch.zeros(0, 1, 8)
    kernels.append_kv(empty, empty, k_cache, v_cache, torch.arange(0))
    assert k_cache.isnan().all()


def test_a_slot_beyond_the_cache_is_refused_and_nothing_is_written():
    k_cache, v_cache = caches(2, 4, 1, 8, torch.float32, "NHD")
    k = torch.ones(2, 1, 8)
    with pytest.raises(ValueError, match="expected slots below 8, got 8 at row 1"):
        kernels.append_kv(k, k, k_cache, v_cache, torch.tensor([0, 8]))
    assert k_cache.isnan().all()
    assert v_cache.isnan().all()


def test_wrong_metadata_is_named():
    k_cache, v_cache = caches(2, 4, 1, 8, torch.float32, "NHD")
    k, slots = torch.ones(2, 1, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"k: expected .* shape \[any, 1, 8\], got .* \[2, 2, 8\]"):
        kernels.append_kv(torch.ones(2, 2, 8), k, k_cache, v_cache, slots)
    with pytest.raises(ValueError, match="v: expected a contiguous float32"):
        kernels.append_kv(k, k.half(), k_cache, v_cache, slots)
    with pytest.raises(ValueError, match=r"k_cache: expected .* with D contiguous"):
        kernels.append_kv(k, k, k_cache.transpose(1, 3), v_cache.transpose(1, 3), slots)
    with pytest.raises(ValueError, match="slots: expected a contiguous int64"):
        kernels.append_kv(k, k, k_cache, v_cache, slots.int())
