import pytest
import torch

import specedge_kernels as kernels
from runtime.model.rope import rope_tables
from specedge_kernels import reference
from specedge_kernels.cpu import DTYPES
from tests.kernels import host
from tests.kernels.cases import rotate

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
E4M3 = torch.float8_e4m3fn
BITS = {4: torch.int32, 2: torch.int16, 1: torch.uint8}


def make_case(
    query_heads, heads, dim, dtype=torch.float32, cached=torch.float32, norm=True, rows=9
):
    """Arguments over a cache of three pages of NaN; K and V of different layouts."""
    generator = torch.Generator().manual_seed(dim)
    qkv = torch.randn(rows, query_heads + 2 * heads, dim, generator=generator).to(dtype)
    norms = torch.randn(query_heads + heads, dim, generator=generator).to(dtype)
    cos, sin = rope_tables(dim, 100.0, None, 50)
    positions = torch.randint(50, (rows,), generator=generator)
    slots = torch.randperm(24, generator=generator)[:rows]
    slots[::4] = -1
    k_cache = torch.full((3, 8, heads, dim), float("nan")).to(cached)
    v_cache = torch.full((3, heads, 8, dim), float("nan")).to(cached).transpose(1, 2)
    return [qkv, norms if norm else None, cos, sin, positions, k_cache, v_cache, slots]


def copy(arguments):
    """Copies of the caches, which keep their strides."""
    return [*arguments[:5], arguments[5].clone(), arguments[6].clone(), arguments[7]]


def assert_same_bits(got, want):
    got, want = got.contiguous(), want.contiguous()
    same = got.view(BITS[got.itemsize]) == want.view(BITS[want.itemsize])
    assert (same | (got.isnan() & want.isnan())).all()


def composed(qkv, norms, cos, sin, positions, k_cache, v_cache, slots):
    """The same one op after another, each rounding in float32."""
    heads = k_cache.shape[2]
    qk, v = qkv[:, :-heads], qkv[:, -heads:]
    if norms is not None:
        ones, heads_of_rows = torch.ones(qk.shape[-1]), qk.reshape(-1, qk.shape[-1])
        qk = kernels.rms_norm(heads_of_rows, ones, 1e-6).view(qk.shape) * norms
    qk = rotate(qk, cos[positions][:, None], sin[positions][:, None])
    kernels.append_kv(qk[:, -heads:].contiguous(), v.contiguous(), k_cache, v_cache, slots)
    return qk[:, :-heads]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("query_heads", "heads", "dim"), [(1, 1, 2), (9, 3, 64), (5, 1, 20)])
def test_float32_bits_equal_those_of_the_ops_one_by_one(query_heads, heads, dim, norm):
    case = make_case(query_heads, heads, dim, norm=norm)
    theirs = copy(case)
    want = composed(*theirs)
    assert_same_bits(kernels.rope_append_kv(*case), want)
    assert_same_bits(case[5], theirs[5])
    assert_same_bits(case[6], theirs[6])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("cached", [*FLOATS, E4M3])
def test_every_type_equals_the_reference(dtype, cached, norm):
    case = make_case(4, 2, 16, dtype, cached, norm)
    theirs = copy(case)
    scales = {"k_scale": 0.03, "v_scale": torch.tensor([1.7, 0.2])}
    q, want = kernels.rope_append_kv(*case, **scales), reference.rope_append_kv(*theirs, **scales)
    if norm:  # sums of squares in another order: another last bit
        pairs = [(q, want), (case[5], theirs[5]), (case[6], theirs[6])]
        for got, expected in pairs:
            tolerance = 2 ** -(2 if expected.dtype == E4M3 else 7)
            torch.testing.assert_close(
                got.float(), expected.float(), rtol=tolerance, atol=1e-6, equal_nan=True
            )
    else:
        assert_same_bits(q, want)
        assert_same_bits(case[5], theirs[5])
    assert_same_bits(case[6], theirs[6])


def test_a_row_has_the_same_bits_alone_and_in_a_batch_on_many_threads():
    case = make_case(12, 4, 128, rows=40)
    case[5] = torch.zeros(40, 1, 4, 128)
    case[6] = torch.zeros(40, 1, 4, 128)
    case[7] = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    q = kernels.rope_append_kv(*case)
    keys, values = case[5].clone(), case[6].clone()
    for row in (0, 17, 39):
        one = [*(case[i][row : row + 1] if i in (0, 4, 7) else case[i] for i in range(8))]
        one[5], one[6] = torch.zeros_like(keys), torch.zeros_like(values)
        assert torch.equal(kernels.rope_append_kv(*one)[0], q[row])
        slot = int(case[7][row])
        assert torch.equal(one[5][slot], keys[slot])
        assert torch.equal(one[6][slot], values[slot])


def test_no_rows():
    case = make_case(4, 2, 16, rows=0)
    assert kernels.rope_append_kv(*case).shape == (0, 4, 16)
    assert case[5].isnan().all()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (4, 50, r"expected positions in 0 \.\. 49, got 50 at row 3"),
        (4, -1, r"expected positions in 0 \.\. 49, got -1 at row 3"),
        (7, 24, "expected slots below 24, got 24 at row 3"),
    ],
)
def test_wrong_values_are_named_and_nothing_is_written(index, value, message):
    case = make_case(4, 2, 16)
    case[index][3] = value
    with pytest.raises(ValueError, match=message):
        kernels.rope_append_kv(*case)
    assert case[5].isnan().all()
    assert case[6].isnan().all()


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda qkv: qkv[:, :4].contiguous(), "qkv: expected more than 4 heads, got 4"),
        (0, lambda qkv: qkv.double(), "qkv: expected a contiguous float32 or"),
        (1, lambda norms: norms[:5], r"qk_norm: expected .* shape \[6, 16\], got .* \[5, 16\]"),
        (2, lambda cos: cos.half(), r"cos: expected a contiguous float32 .* shape \[any, 16\]"),
        (3, lambda sin: sin[:40], r"sin: expected .* shape \[50, 16\]"),
        (4, lambda positions: positions.int(), "positions: expected a contiguous int64"),
        (7, lambda slots: slots[:3], r"slots: expected .* shape \[9\]"),
    ],
)
def test_wrong_metadata_is_named(index, change, message):
    case = make_case(4, 2, 16)
    case[index] = change(case[index])
    with pytest.raises(ValueError, match=message):
        kernels.rope_append_kv(*case)


def test_an_odd_head_cannot_turn():
    case = make_case(4, 2, 16)
    case = [t[..., :15].contiguous() if t is not None and t.dim() > 1 else t for t in case]
    with pytest.raises(ValueError, match="qkv: expected an even D, got 15"):
        kernels.rope_append_kv(*case)


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory):
    return host.build("rope_append_kv", tmp_path_factory.mktemp("rope_append_kv"))


def run_on_host(program, case, backwards, k_scale, eps=1e-6, v_scale=1.0):
    """q of the CUDA body and what it left in the caches of `case`."""
    qkv, norms, cos, sin, positions, k_cache, v_cache, slots = case
    query_heads = qkv.shape[1] - 2 * k_cache.shape[2]
    q = qkv[:, :query_heads].contiguous()
    norm_dtype = int(DTYPES[qkv.dtype if norms is None else norms.dtype])
    sizes = (len(qkv), int(DTYPES[qkv.dtype]), norm_dtype, query_heads, len(cos))
    written = host.run(
        program,
        host.numbers(*sizes, q.numel() * q.itemsize, backwards, len(k_scale)),
        host.floats(eps, v_scale, *k_scale),
        *(host.sized(tensor) for tensor in (qkv, norms, cos, sin)),
        host.raw(positions) + host.raw(slots),
        host.cache_of(k_cache) + host.cache_of(v_cache),
    )
    first = q.numel() * q.itemsize
    second = first + k_cache.numel() * k_cache.itemsize
    parts = (written[:first], written[first:second], written[second:])
    return [host.like(part, t) for part, t in zip(parts, (q, k_cache, v_cache), strict=True)]


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(
    ("query_heads", "heads", "dim", "dtype", "cached"),
    [
        (9, 3, 64, torch.float32, torch.float32),
        (1, 1, 2, torch.float32, torch.bfloat16),
        (5, 1, 80, torch.bfloat16, torch.bfloat16),
        (40, 8, 128, torch.bfloat16, E4M3),
        (4, 2, 20, torch.float16, torch.float16),
    ],
)
def test_the_cuda_body_turns_the_same_on_a_cpu(
    host_kernel, query_heads, heads, dim, dtype, cached, backwards
):
    case = make_case(query_heads, heads, dim, dtype, cached, norm=False)
    k_scale = torch.linspace(0.03, 2, heads)
    got = run_on_host(host_kernel, case, backwards, k_scale, v_scale=1.7)
    q = reference.rope_append_kv(*case, k_scale=k_scale, v_scale=1.7)
    for result, want in zip(got, (q, case[5], case[6]), strict=True):
        assert_same_bits(result, want)


@pytest.mark.parametrize(("query_heads", "heads", "dim"), [(9, 3, 64), (1, 1, 2), (5, 1, 20)])
def test_the_cuda_body_normalises_queries_and_keys(host_kernel, query_heads, heads, dim):
    case = make_case(query_heads, heads, dim)
    case[0][0] *= 1e-3  # so small that eps tells
    got = run_on_host(host_kernel, case, 0, torch.ones(heads), eps=1e-4)
    q = reference.rope_append_kv(*case, eps=1e-4)
    for result, want in zip(got[:2], (q, case[5]), strict=True):
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert_same_bits(got[2], case[6])
