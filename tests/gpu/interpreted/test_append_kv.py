import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.append_kv import append_kv

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
E4M3 = torch.float8_e4m3fn
BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}

# Where a GPU rounds to bfloat16 the interpreter truncates: test_compile_ops.py sees to the former.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast")


def caches(pages, size, heads, dim, dtype, layout):
    shape = (pages, heads, size, dim) if layout == "HND" else (pages, size, heads, dim)
    made = [torch.full(shape, float("nan")).to(dtype) for _ in range(2)]
    return [cache.transpose(1, 2) if layout == "HND" else cache for cache in made]


def assert_same_bits(got, want):
    got, want = got.contiguous(), want.contiguous()
    same = got.view(BITS[got.itemsize]) == want.view(BITS[want.itemsize])
    assert (same | (got.isnan() & want.isnan())).all()


@pytest.mark.every_value
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("dtype", [*FLOATS, E4M3])
@pytest.mark.parametrize(("page_size", "layout"), [(1, "NHD"), (16, "HND"), (64, "NHD")])
def test_bits_equal_the_reference(source, dtype, page_size, layout, device):
    generator = torch.Generator().manual_seed(page_size)
    pages, heads, dim, rows = 20 // page_size + 2, 3, 20, 8
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-8, 6e-8, 65519, 65520]
    k = torch.randn(rows, heads, dim, generator=generator) * 10.0 ** torch.randint(
        -9, 5, (rows, heads, dim), generator=generator
    )
    k[0, 0, : len(special)] = torch.tensor(special)
    if device == "cpu" and dtype == torch.bfloat16:
        k = k.bfloat16()
    k = k.to(source)
    v = -k
    slots = torch.randperm(pages * page_size, generator=generator)[:rows]
    slots[::5] = -1
    slots[0] = pages * page_size - 1
    slots[1:][slots[1:] == slots[0]] = -1
    want = caches(pages, page_size, heads, dim, dtype, layout)
    # K and V of different layouts: neither may use the other's strides.
    other = "NHD" if layout == "HND" else "HND"
    want[1] = caches(pages, page_size, heads, dim, dtype, other)[1]
    got = [cache.to(device, copy=True) for cache in want]
    assert [cache.stride() for cache in got] == [cache.stride() for cache in want]
    reference.append_kv(k, v, *want, slots)
    append_kv(k.to(device), v.to(device), *got, slots.to(device))
    for result, expected in zip(got, want, strict=True):
        assert_same_bits(result.cpu(), expected)


def test_wide_rows_take_several_blocks(device):
    k = torch.randn(2, 9, 256)
    cache = torch.zeros(2, 2, 9, 256, device=device)
    other, slots = cache.clone(), torch.tensor([3, 0], device=device)
    append_kv(k.to(device), -k.to(device), cache, other, slots)
    assert torch.equal(cache.view(4, 9, 256)[[3, 0]].cpu(), k)
    assert torch.equal(other.view(4, 9, 256)[[3, 0]].cpu(), -k)
    assert not cache.view(4, 9, 256)[1:3].any()


def test_rounding_of_halves_at_every_boundary(device):
    """Every half, the middle to its neighbour, and one float32 step to either side of it."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float()
    halves = halves[halves.isfinite()].sort().values
    middles = (halves[1:] + halves[:-1]) / 2
    inf = torch.tensor(float("inf"))
    values = torch.cat([halves, middles, middles.nextafter(inf), middles.nextafter(-inf)])
    width = 2**15
    rows = -(-len(values) // width)
    values = torch.nn.functional.pad(values, (0, rows * width - len(values))).view(rows, 1, width)
    for dtype in [torch.float16] if device == "cpu" else FLOATS[1:]:
        cache = torch.zeros(rows, 1, 1, width, dtype=dtype, device=device)
        source = values.to(device)
        append_kv(source, source, cache, cache.clone(), torch.arange(rows).to(device))
        assert_same_bits(cache.cpu().view(rows, 1, width), values.to(dtype))


def test_no_rows(device):
    cache = torch.ones(2, 4, 1, 8, device=device)
    empty = torch.zeros(0, 1, 8, device=device)
    append_kv(empty, empty, cache, cache.clone(), torch.arange(0, device=device))
    assert (cache == 1).all()


def test_float8_rounds_every_boundary_to_even_and_saturates(device):
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    inf = torch.tensor(float("inf"))
    beyond = torch.tensor([449, 464, 465, 480, 1e9, 1e38, float("inf")])
    steps = [middles, middles.nextafter(inf), middles.nextafter(-inf), beyond, -beyond]
    values = torch.cat([numbers, *steps, torch.tensor([1e-30, -1e-30, float("nan")])])
    cache = torch.zeros(1, 1, 1, len(values), device=device).to(E4M3)
    row = values.view(1, 1, -1).to(device)
    append_kv(row, row, cache, cache.clone(), torch.zeros(1, dtype=torch.int64, device=device))
    assert_same_bits(cache.cpu().view(-1), values.clamp(-448, 448).to(E4M3))


@pytest.mark.parametrize("dtype", [torch.float32, E4M3])
def test_keys_and_values_are_divided_by_scales_of_their_own(dtype, device):
    k = torch.linspace(-3, 3, 48).view(2, 2, 12)
    got = [cache.to(device) for cache in caches(1, 4, 2, 12, dtype, "NHD")]
    slots = torch.tensor([2, 0], device=device)
    append_kv(k.to(device), k.to(device), *got, slots, k_scale=0.37, v_scale=2.0)
    assert_same_bits(got[0][0, [2, 0]].cpu(), (k / torch.tensor(0.37)).to(dtype))
    assert_same_bits(got[1][0, [2, 0]].cpu(), (k / 2).to(dtype))


@pytest.mark.parametrize("value_dim", [0, 8, 300])
def test_heads_have_scales_and_values_a_width_of_their_own(value_dim, device):
    generator = torch.Generator().manual_seed(value_dim)
    k, v = (torch.randn(3, 3, dim, generator=generator).to(device) for dim in (20, value_dim))
    both = torch.full((2, 2, 3, 20 + value_dim), float("nan"), device=device)  # side by side
    scales = torch.tensor([[0.3, 1, 7], [2.0, 0.1, 1]], device=device)
    slots = torch.tensor([3, -1, 0], device=device)
    parts = both[..., :20], both[..., 20:]
    append_kv(k, v, *parts, slots, k_scales=scales[0], v_scales=scales[1])
    want = torch.cat((k / scales[0][:, None], v / scales[1][:, None]), -1)
    assert_same_bits(both.view(4, 3, -1)[[3, 0]], want[[0, 2]])
    assert both.isnan().view(4, -1).all(1).sum() == 2
