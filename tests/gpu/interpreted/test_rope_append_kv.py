import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.rope_append_kv import rope_append_kv

E4M3 = torch.float8_e4m3fn


def make_case(query_heads, heads, dim, dtype, cached, norm, rows=5):
    """Arguments over a cache of two pages of NaN; K and V of different layouts."""
    generator = torch.Generator().manual_seed(dim)
    qkv = torch.randn(rows, query_heads + 2 * heads, dim, generator=generator).to(dtype)
    norms = torch.randn(query_heads + heads, dim, generator=generator).to(dtype)
    cos, sin = torch.randn(2, 50, dim, generator=generator)
    positions = torch.randint(50, (rows,), generator=generator)
    slots = torch.tensor([7, 0, -1, 3, 12])[:rows]
    k_cache = torch.full((2, 8, heads, dim), float("nan")).to(cached)
    v_cache = torch.full((2, heads, 8, dim), float("nan")).to(cached).transpose(1, 2)
    return [qkv, norms if norm else None, cos, sin, positions, k_cache, v_cache, slots]


def on(device, arguments):
    return [None if t is None else t.to(device, copy=True) for t in arguments]


def assert_close(got, want):
    """One step of the type apart at most: a GPU fuses products and sums, and sums elsewhere."""
    step = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6, E4M3: 2**-2}
    got, want, tolerance = got.cpu().float(), want.float(), step[want.dtype]
    torch.testing.assert_close(
        got, want, rtol=tolerance, atol=2e-3 * tolerance**0.5, equal_nan=True
    )


@pytest.mark.every_value
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("dtype", "cached"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float32),
        (torch.float32, E4M3),
        (torch.float16, E4M3),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_equals_the_reference(dtype, cached, norm, device):
    theirs = make_case(4, 2, 32, dtype, cached, norm)
    ours = on(device, theirs)
    scales = torch.tensor([1.7, 0.4])
    assert ours[6].stride() == theirs[6].stride()
    q = rope_append_kv(*ours, k_scale=0.3, v_scales=scales.to(device))
    want = reference.rope_append_kv(*theirs, k_scale=0.3, v_scale=scales)
    assert q.dtype == dtype
    assert_close(q, want)
    assert_close(ours[5], theirs[5])
    assert_close(ours[6], theirs[6])


@pytest.mark.every_value
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("query_heads", "heads", "dim"), [(1, 1, 2), (7, 1, 20), (40, 8, 128)])
def test_heads_of_any_number_and_size(query_heads, heads, dim, norm, device):
    theirs = make_case(query_heads, heads, dim, torch.float32, torch.float32, norm, rows=2)
    ours = on(device, theirs)
    assert_close(rope_append_kv(*ours, eps=1e-3), reference.rope_append_kv(*theirs, eps=1e-3))
    assert_close(ours[5], theirs[5])
    assert_close(ours[6], theirs[6])


def test_values_pass_unturned_and_a_row_is_the_same_alone(device):
    case = on(device, make_case(4, 2, 32, torch.float32, torch.float32, True))
    case[0][1, -2:] = float("inf")  # a value head that is turned would become NaN
    q = rope_append_kv(*case)
    assert case[6][0, 0].isposinf().all()
    alone = [*(case[i][1:2] if i in (0, 4, 7) else case[i].clone() for i in range(8))]
    assert torch.equal(rope_append_kv(*alone)[0], q[1])
    assert torch.equal(alone[5][0, 0], case[5][0, 0])


def test_no_rows(device):
    case = on(device, make_case(4, 2, 32, torch.float32, torch.float32, True, rows=0))
    assert rope_append_kv(*case).shape == (0, 4, 32)
