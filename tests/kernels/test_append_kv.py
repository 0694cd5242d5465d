import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from specedge_kernels.cpu import DTYPES
from tests.kernels import host

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
E4M3 = torch.float8_e4m3fn
BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def caches(pages, size, heads, dim, dtype, layout):
    shape = (pages, heads, size, dim) if layout == "HND" else (pages, size, heads, dim)
    made = [torch.full(shape, float("nan")).to(dtype) for _ in range(2)]
    return [cache.transpose(1, 2) if layout == "HND" else cache for cache in made]


def assert_same_bits(got, want):
    got, want = got.contiguous(), want.contiguous()
    same = got.view(BITS[got.itemsize]) == want.view(BITS[want.itemsize])
    assert (same | (got.isnan() & want.isnan())).all()


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("dtype", [*FLOATS, E4M3])
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
        assert_same_bits(a, b)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, E4M3])
def test_keys_and_values_are_divided_by_scales_of_their_own(source, dtype):
    k = torch.linspace(-3, 3, 48).view(2, 2, 12).to(source)
    k_cache, v_cache = caches(1, 4, 2, 12, dtype, "NHD")
    kernels.append_kv(k, k, k_cache, v_cache, torch.tensor([2, 0]), k_scale=0.37, v_scale=2.0)
    assert_same_bits(k_cache[0, [2, 0]], (k.float() / 0.37).to(dtype))
    assert_same_bits(v_cache[0, [2, 0]], (k.float() / 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3])
@pytest.mark.parametrize("value_dim", [0, 8, 40])
def test_heads_have_scales_and_values_a_width_of_their_own(dtype, value_dim):
    generator = torch.Generator().manual_seed(value_dim)
    k, v = (torch.randn(5, 3, dim, generator=generator) for dim in (20, value_dim))
    both = torch.full((2, 4, 3, 20 + value_dim), float("nan")).to(dtype)  # side by side
    slots = torch.tensor([7, -1, 0, 3, 4])
    scales = {"k_scale": torch.tensor([0.3, 1, 7]), "v_scale": torch.tensor([2.0, 0.1, 1])}
    kernels.append_kv(k, v, both[..., :20], both[..., 20:], slots, **scales)
    want = torch.cat((k / scales["k_scale"][:, None], v / scales["v_scale"][:, None]), -1)
    kept = slots >= 0
    assert_same_bits(both.view(8, 3, -1)[slots[kept]], want[kept].to(dtype))
    assert both.isnan().view(8, -1).all(1).sum() == 4


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


def test_float8_rounds_every_boundary_to_even_and_saturates():
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    inf = torch.tensor(float("inf"))
    beyond = torch.tensor([449, 464, 465, 480, 1e9, 1e38, float("inf")])
    steps = [middles, middles.nextafter(inf), middles.nextafter(-inf), beyond, -beyond]
    values = torch.cat([numbers, *steps, torch.tensor([1e-30, -1e-30, float("nan")])])
    cache = torch.zeros(len(values), 1, 1, 1, dtype=E4M3)
    rows = values.view(-1, 1, 1)
    kernels.append_kv(rows, rows, cache, cache.clone(), torch.arange(len(values)))
    assert_same_bits(cache.view(-1), values.clamp(-448, 448).to(E4M3))


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
    with pytest.raises(
        ValueError, match="k_scale: expected more than 0, and a finite float32, got 0"
    ):
        kernels.append_kv(k, k, k_cache, v_cache, slots, k_scale=0.0)
    with pytest.raises(ValueError, match="slots: expected a contiguous int64"):
        kernels.append_kv(k, k, k_cache, v_cache, slots.int())


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory):
    return host.build("append_kv", tmp_path_factory.mktemp("append_kv"))


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(
    ("source", "dtype", "heads", "dim"),
    [
        (torch.float32, torch.float32, 3, 20),
        (torch.float32, torch.bfloat16, 9, 64),
        (torch.bfloat16, torch.bfloat16, 1, 3),
        (torch.float16, E4M3, 8, 128),
        (torch.bfloat16, torch.float16, 2, 80),
    ],
)
def test_the_cuda_body_gives_the_same_on_a_cpu(host_kernel, source, dtype, heads, dim, backwards):
    generator = torch.Generator().manual_seed(dim)
    k, v = (torch.randn(2, 7, heads, dim, generator=generator) * 100).to(source)
    slots = torch.tensor([5, -1, 31, 0, 17, -1, 8])
    want = [caches(2, 16, heads, dim, dtype, layout)[0] for layout in ("NHD", "HND")]
    blank = [host.cache_of(cache) for cache in want]
    k_scale = torch.linspace(0.7, 1.3, heads)
    reference.append_kv(k, v, *want, slots, k_scale=k_scale, v_scale=3.0)
    sizes = host.numbers(7, int(DTYPES[source]), backwards, heads)
    kv = host.sized(k) + host.sized(v) + host.raw(slots)
    written = host.run(host_kernel, sizes, host.floats(*k_scale, 3.0), kv, *blank)
    half = len(written) // 2
    assert_same_bits(host.like(written[:half], want[0]), want[0])
    assert_same_bits(host.like(written[half:], want[1]), want[1])
