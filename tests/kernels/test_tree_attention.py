import dataclasses

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import (
    SHAPES,
    int32,
    linearised,
    make_batch,
    make_caches,
    offsets_of,
    parents_of,
)

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def attend(q, k_cache, v_cache, batch, **options):
    scale = q.shape[-1] ** -0.5
    return kernels.tree_attention(q, k_cache, v_cache, *batch.tables, scale=scale, **options)


def expect(q, k_cache, v_cache, batch, **options):
    scale = q.shape[-1] ** -0.5
    return reference.tree_attention(
        q.double(), k_cache, v_cache, *batch.tables, scale=scale, **options
    )


def assert_close(got, want, dtype=torch.float32):
    assert not got.isnan().any()
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm()


def queries(batch, heads, dim, generator, dtype=torch.float32):
    return torch.randn(int(batch.offsets[-1]), heads, dim, generator=generator).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("page_size", "layout", "dim", "kv_heads", "group"),
    [(1, "NHD", 64, 2, 1), (16, "HND", 80, 1, 3), (32, "NHD", 96, 2, 4), (64, "HND", 128, 1, 8)],
)
def test_ragged_batches_equal_float64(shape, page_size, layout, dim, kv_heads, group):
    generator = torch.Generator().manual_seed(dim)
    sizes, prefixes = [1, 12, 0, 33, 64], [0, 63, 5, 64, 150]
    parents = [parents_of(shape, n, generator) for n in sizes]
    batch = make_batch(parents, prefixes, page_size, generator, cached=[0, 4, 0, 0, 40])
    caches = make_caches(batch, kv_heads, dim, torch.float32, generator, layout)
    q = queries(batch, kv_heads * group, dim, generator)
    assert_close(attend(q, *caches, batch), expect(q, *caches, batch))


@pytest.mark.parametrize(("nodes", "words"), [(65, 2), (128, 2), (200, 4), (256, 4)])
def test_wide_trees_equal_float64(nodes, words):
    generator = torch.Generator().manual_seed(nodes)
    parents = [parents_of("random", nodes, generator), parents_of("caterpillar", 70, generator)]
    batch = make_batch(parents, [130, 0], 16, generator, cached=[nodes - 20, 0], words=words)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 3, 64, generator)
    assert_close(attend(q, *caches, batch), expect(q, *caches, batch))


@pytest.mark.parametrize("query_dtype", FLOATS)
@pytest.mark.parametrize("cache_dtype", [*FLOATS, FP8])
def test_every_pair_of_types(query_dtype, cache_dtype):
    generator = torch.Generator().manual_seed(1)
    parents = [parents_of("binary", 20, generator), parents_of("random", 40, generator)]
    batch = make_batch(parents, [70, 3], 16, generator)
    caches = make_caches(batch, 1, 72, cache_dtype, generator)
    q = queries(batch, 2, 72, generator, query_dtype)
    got = attend(q, *caches, batch)
    assert got.dtype == query_dtype
    assert_close(got, expect(q, *caches, batch), query_dtype)


@pytest.mark.parametrize("dim", [1, 3, 8, 20, 33, 256])
def test_any_head_dimension(dim):
    generator = torch.Generator().manual_seed(dim)
    batch = make_batch([parents_of("random", 30, generator)], [100], 16, generator)
    for dtype in (*FLOATS, FP8):
        caches = make_caches(batch, 2, dim, dtype, generator)
        q = queries(batch, 4, dim, generator)
        assert_close(attend(q, *caches, batch), expect(q, *caches, batch))


@pytest.mark.parametrize("window", [1, 2, 30, 63, 64, 65, 100, 128, 1000])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_windows_count_the_path_not_the_slots(window, softcap):
    generator = torch.Generator().manual_seed(window)
    parents = [parents_of(shape, 60, generator) for shape in ("random", "chain", "star")]
    batch = make_batch(parents, [300, 0, 129], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 3, 32, generator) * 5
    options = {"window": window, "softcap": softcap}
    assert_close(attend(q, *caches, batch, **options), expect(q, *caches, batch, **options))


@pytest.mark.parametrize("scale", [-0.2, 0.0])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_hidden_positions_stay_hidden_at_any_scale(scale, softcap):
    """Minus infinity is put in their place after scaling and capping, not before."""
    generator = torch.Generator().manual_seed(3)
    batch = make_batch([parents_of("random", 40, generator)], [75], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 3, 32, generator) * 5
    options = {"window": 30, "softcap": softcap, "scale": scale}
    got = kernels.tree_attention(q, *caches, *batch.tables, **options)
    want = reference.tree_attention(q.double(), *caches, *batch.tables, **options)
    assert_close(got, want)


def test_a_window_of_nothing_gives_zeros_of_no_weight():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([[-1, 0]], [10], 16, generator)
    caches = make_caches(batch, 1, 16, torch.float32, generator)
    q = queries(batch, 1, 16, generator)
    out, lse = attend(q, *caches, batch, window=0, return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize(
    ("dim", "value_dim"), [(192, 128), (128, 192), (16, 8), (40, 576), (72, 33), (576, 64)]
)
def test_values_may_be_narrower_or_wider_than_keys(dim, value_dim, cached):
    generator = torch.Generator().manual_seed(dim)
    parents = [parents_of("random", 20, generator), parents_of("chain", 70, generator)]
    batch = make_batch(parents, [75, 0], 16, generator, cached=[0, 60])
    caches = make_caches(batch, 2, dim, cached, generator, value_dim=value_dim)
    q = queries(batch, 6, dim, generator)
    got = attend(q, *caches, batch, window=60)
    assert got.shape == (30, 6, value_dim)
    assert_close(got, expect(q, *caches, batch, window=60))


@pytest.mark.parametrize("cached", [torch.float32, FP8])
@pytest.mark.parametrize(("dim", "value_dim"), [(576, 512), (72, 64), (32, 32)])
def test_values_may_be_a_part_of_the_keys(dim, value_dim, cached):
    """Absorbed latent attention: one head for all, read where the keys lie."""
    generator = torch.Generator().manual_seed(dim)
    batch = make_batch([parents_of("random", 20, generator)], [75], 16, generator)
    keys = make_caches(batch, 1, dim, cached, generator)[0]
    q = queries(batch, 16, dim, generator)
    got = attend(q, keys, keys[..., :value_dim], batch)
    assert_close(got, expect(q, keys, keys[..., :value_dim], batch))
    assert torch.equal(got, attend(q, keys, keys[..., :value_dim].clone(), batch))


@pytest.mark.parametrize("options", [{}, {"window": 30, "softcap": 5.0}])
def test_sinks_weigh_and_have_no_value(options):
    generator = torch.Generator().manual_seed(4)
    parents = [parents_of(shape, 40, generator) for shape in ("random", "chain")]
    batch = make_batch(parents, [150, 0], 16, generator)
    caches = make_caches(batch, 2, 32, torch.float32, generator)
    q = queries(batch, 6, 32, generator) * 3
    sinks = torch.tensor([0.0, 9.0, -9.0, 300.0, -300.0, -torch.inf])
    options = {**options, "sinks": sinks, "return_lse": True}
    out, lse = attend(q, *caches, batch, **options)
    want = expect(q, *caches, batch, **options)
    assert_close(out, want[0])
    torch.testing.assert_close(lse, want[1], rtol=1e-6, atol=1e-6)
    without = attend(q, *caches, batch, **(options | {"sinks": None}))
    assert torch.equal(out[:, 5], without[0][:, 5])
    nothing = attend(q, *caches, batch, **(options | {"window": 0}))
    assert (nothing[0] == 0).all()
    assert torch.equal(nothing[1], sinks.expand(len(q), -1))


@pytest.mark.parametrize("cached", [torch.bfloat16, FP8])
def test_scales_of_each_head(cached):
    generator = torch.Generator().manual_seed(2)
    batch = make_batch([parents_of("random", 40, generator)], [150], 16, generator)
    caches = make_caches(batch, 3, 48, cached, generator)
    q = queries(batch, 6, 48, generator)
    scales = {"k_scale": torch.tensor([0.3, 1.7, 1.0]), "v_scale": torch.tensor([2.0, 0.1, 1.0])}
    got = attend(q, *caches, batch, **scales)
    assert_close(got, expect(q, *caches, batch, **scales))
    assert torch.equal(got[:, 4:], attend(q, *caches, batch)[:, 4:])
    for head in range(3):
        numbers = {name: float(scale[head]) for name, scale in scales.items()}
        own = slice(2 * head, 2 * head + 2)
        assert torch.equal(got[:, own], attend(q, *caches, batch, **numbers)[:, own])


@pytest.mark.parametrize("options", [{}, {"window": 30, "softcap": 5.0}])
def test_scales_of_keys_and_values(options):
    generator = torch.Generator().manual_seed(2)
    batch = make_batch([parents_of("random", 40, generator)], [150], 16, generator)
    caches = make_caches(batch, 1, 48, FP8, generator)
    q = queries(batch, 3, 48, generator)
    options = {**options, "k_scale": 1.7, "v_scale": 0.3}
    assert_close(attend(q, *caches, batch, **options), expect(q, *caches, batch, **options))


def test_every_value_of_float8():
    every = torch.arange(256, dtype=torch.uint8).view(FP8)
    kept = every.float().isfinite()
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([[-1]], [0], 1, generator)
    # One token, so the output is its value: in the vectors of a row and in what is left of it.
    for dim in (256, 255):
        values = torch.where(kept, every.float(), 0)[:dim].to(FP8).expand(4, 1, 1, dim).contiguous()
        got = attend(queries(batch, 1, dim, generator), values, values, batch)
        assert torch.equal(got[0, 0], values[0, 0, 0].float())


@pytest.mark.parametrize("options", [{}, {"window": 30}, {"softcap": 5.0}])
def test_the_weight_of_what_a_row_sees(options):
    generator = torch.Generator().manual_seed(6)
    parents = [parents_of(shape, 50, generator) for shape in SHAPES]
    batch = make_batch(parents, [0, 63, 64, 130, 7], 16, generator)
    caches = make_caches(batch, 2, 32, torch.float32, generator)
    q = queries(batch, 6, 32, generator) * 3
    out, lse = attend(q, *caches, batch, return_lse=True, **options)
    want = expect(q, *caches, batch, return_lse=True, **options)
    assert_close(out, want[0])
    torch.testing.assert_close(lse, want[1], rtol=1e-6, atol=1e-6)
    assert torch.equal(out, attend(q, *caches, batch, **options))


def test_two_parts_of_a_prefix_merge_into_the_whole():
    generator = torch.Generator().manual_seed(9)
    batch = make_batch([parents_of("random", 20, generator)], [150], 16, generator)
    caches = make_caches(batch, 2, 32, torch.float32, generator)
    q = queries(batch, 4, 32, generator) * 3
    rows, first = len(q), 64
    # Every row as a decode step over the first tokens, and the tree over the others.
    decode = (
        batch.page_table.expand(rows, -1)[:, : first // 16].contiguous(),
        int32([first - 1] * rows),
        int32([1] * rows),
        offsets_of([1] * rows),
        torch.ones(rows, 1, dtype=torch.int64),
        int32([0] * rows),
    )
    late = dataclasses.replace(
        batch,
        page_table=batch.page_table[:, first // 16 :].contiguous(),
        prefix_lens=batch.prefix_lens - first,
    )
    parts = [
        kernels.tree_attention(q, *caches, *tables, scale=32**-0.5, return_lse=True)
        for tables in (decode, late.tables)
    ]
    weights = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    merged = (torch.stack([out for out, _ in parts]) * weights).sum(0)
    assert_close(merged, attend(q, *caches, batch))


def test_pages_before_the_window_are_never_looked_at():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([parents_of("random", 20, generator)], [500], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 2, 32, generator)
    want = attend(q, *caches, batch, window=50)
    first_needed = 500 + 1 - 50
    for cache in caches:
        cache[batch.page_table[0, : first_needed // 16].long()] = float("nan")
    batch.page_table[0, : first_needed // 16] = -1
    assert torch.equal(attend(q, *caches, batch, window=50), want)


def test_prompt_chunks_beyond_the_mask():
    generator = torch.Generator().manual_seed(4)
    batch = make_batch(
        [parents_of("chain", 300, generator), parents_of("chain", 90, generator)],
        [0, 77],
        16,
        generator,
        cached=[100, 0],
        words=1,
    )
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 3, 32, generator)
    assert_close(attend(q, *caches, batch), expect(q, *caches, batch))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 3.0}, {"window": 700}, {"sinks": torch.linspace(-2, 9, 6)}],
    ids=["plain", "softcap", "window", "sinks"],
)
def test_long_texts_equal_float64(options, threads):
    """The scores grow from one stretch of 512 positions to the next, and then fall."""
    generator = torch.Generator().manual_seed(14)
    parents = [parents_of("random", n, generator) for n in (40, 1, 30)]
    batch = make_batch(parents, [2000, 1536, 500], 16, generator)
    caches = make_caches(batch, 2, 64, torch.float32, generator)
    for page, weight in zip(batch.page_table[0, :125].long(), torch.arange(125), strict=True):
        caches[0][page] *= 5 * torch.sin(weight / 40)
    q = queries(batch, 6, 64, generator)
    want, want_lse = expect(q, *caches, batch, return_lse=True, **options)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got, lse = attend(q, *caches, batch, return_lse=True, **options)
    finally:
        torch.set_num_threads(before)
    assert_close(got, want)
    torch.testing.assert_close(lse, want_lse, rtol=2e-6, atol=2e-6)


def test_no_requests_no_rows_no_prefix():
    generator = torch.Generator().manual_seed(0)
    none = make_batch([], [], 16, generator)
    caches = make_caches(none, 1, 16, torch.float32, generator)
    assert attend(torch.zeros(0, 2, 16), *caches, none).shape == (0, 2, 16)
    cached_only = make_batch([[-1, 0]], [5], 16, generator, cached=[2])
    caches = make_caches(cached_only, 1, 16, torch.float32, generator)
    assert attend(torch.zeros(0, 2, 16), *caches, cached_only).shape == (0, 2, 16)
    one = make_batch([[-1]], [0], 16, generator)
    caches = make_caches(one, 1, 16, torch.float32, generator)
    value = caches[1][one.page_table[0, 0], 0, 0]
    assert torch.equal(attend(torch.randn(1, 1, 16), *caches, one)[0, 0], value)


def test_large_scores_do_not_overflow_and_small_ones_vanish():
    generator = torch.Generator().manual_seed(8)
    batch = make_batch([parents_of("random", 30, generator)], [200], 16, generator)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 2, 64, generator) * 1e4
    assert_close(attend(q, *caches, batch), expect(q, *caches, batch))


# Bitwise invariance: what a token sees decides its bits, not where or with whom it is computed.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prefixes", [(100, 0, 191), (490, 1020, 512)])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float16, {"softcap": 3.0}),
        (torch.float32, {"window": 70}),
        (FP8, {"k_scale": 1.3, "v_scale": 0.7}),
        (torch.float32, {"window": 5, "softcap": 3.0, "sinks": torch.linspace(-2, 2, 6)}),
    ],
)
def test_a_tree_row_has_the_bits_of_plain_decoding(shape, prefixes, dtype, options):
    generator = torch.Generator().manual_seed(11)
    sizes = [70, 45, 20]
    parents = [parents_of(shape, n, generator) for n in sizes]
    batch = make_batch(parents, prefixes, 16, generator)
    caches = make_caches(batch, 2, 40, dtype, generator)
    q = queries(batch, 6, 40, generator)
    got = attend(q, *caches, batch, **options)
    for b, first in enumerate(batch.offsets[:-1].tolist()):
        for node in range(0, sizes[b], 3):
            row = first + node
            alone, moved = linearised(batch, caches, b, node, generator, 32)
            want = attend(q[row : row + 1], *moved, alone, **options)
            assert torch.equal(got[row], want[0]), (b, node)


@pytest.mark.parametrize(
    ("length", "options"),
    [(230, {}), (230, {"window": 40}), (1100, {}), (1100, {"window": 600})],
)
def test_a_prompt_has_the_same_bits_in_chunks_of_any_size(length, options):
    generator = torch.Generator().manual_seed(12)
    whole = make_batch([parents_of("chain", length, generator)], [0], 16, generator)
    caches = make_caches(whole, 1, 64, torch.float32, generator)
    q = queries(whole, 3, 64, generator)
    want = attend(q, *caches, whole, **options)
    for size in (1, 7, 64, 100):
        for first in range(0, length, size):
            n = min(size, length - first)
            ancestors, depth = kernels.build_tree(int32(range(-1, n - 1)), offsets_of([n]), 1)
            got = kernels.tree_attention(
                q[first : first + n],
                *caches,
                whole.page_table,
                int32([first]),
                int32([n]),
                offsets_of([n]),
                ancestors,
                depth,
                scale=64**-0.5,
                **options,
            )
            assert torch.equal(got, want[first : first + n])


@pytest.mark.parametrize("prefixes", [(200, 64, 10), (1500, 500, 10)])
def test_cached_nodes_and_batch_mates_and_threads_change_no_bit(prefixes):
    generator = torch.Generator().manual_seed(13)
    parents = [parents_of("random", n, generator) for n in (64, 30, 50)]
    batch = make_batch(parents, prefixes, 16, generator)
    caches = make_caches(batch, 2, 64, torch.float32, generator)
    q = queries(batch, 6, 64, generator)
    want = attend(q, *caches, batch)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(attend(q, *caches, batch), want)
    finally:
        torch.set_num_threads(before)
    for b, first in enumerate(batch.offsets[:-1].tolist()):
        for last in (1, 2, 7, 20):  # only the last rows of one request
            end = int(batch.offsets[b + 1])
            rows = slice(max(first, end - last), end)
            got = kernels.tree_attention(
                q[rows],
                *caches,
                batch.page_table[b : b + 1],
                batch.prefix_lens[b : b + 1],
                batch.n_nodes[b : b + 1],
                offsets_of([rows.stop - rows.start]),
                batch.ancestors[rows],
                batch.depth[rows],
                scale=64**-0.5,
            )
            assert torch.equal(got, want[rows])


def small_batch():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([[-1, 0, 0], [-1, 0]], [20, 3], 16, generator)
    caches = make_caches(batch, 1, 16, torch.float32, generator)
    return queries(batch, 2, 16, generator), caches, batch


@pytest.mark.parametrize(
    ("table", "index", "value", "message"),
    [
        ("page_table", (0, 1), 99, r"request 0: expected page ids in 0 \.\. 5, got 99 at index 1"),
        ("page_table", (1, 0), -1, "request 1: expected page ids"),
        ("prefix_lens", 1, -2, "request 1: expected a prefix length of 0 or more, got -2"),
        ("prefix_lens", 0, 900, "request 0: expected pages for 903 tokens"),
        ("n_nodes", 0, 2, "request 0: expected at least as many nodes as its 3 rows, got 2"),
        ("offsets", 1, 6, "expected offsets not to decrease, got 6 then 5 at request 1"),
        ("offsets", 0, 1, "expected offsets to start at 0"),
        ("ancestors", (2, 0), 1, "request 0: expected the mask of node 2 to hold the node itself"),
        ("ancestors", (2, 0), 7, "expected 2 nodes in the mask of node 2 at depth 1, got 3"),
        ("depth", 4, 5, r"request 1: expected a depth in 0 \.\. 1 for node 1, got 5"),
    ],
)
def test_wrong_values_are_named(table, index, value, message):
    q, caches, batch = small_batch()
    getattr(batch, table)[index] = value
    with pytest.raises(ValueError, match=message):
        attend(q, *caches, batch)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("sinks", [0, torch.nan], "expected sinks that are finite or -inf, got nan for head 1"),
        ("sinks", [torch.inf, 0], "expected sinks that are finite or -inf, got inf for head 0"),
        ("sinks", [0, 0, 0], r"sinks: expected .* shape \[2\]"),
        ("k_scale", [0.0], "expected a k_scale of more than 0, and finite, got 0 for head 0"),
        ("v_scale", [torch.inf], "expected a v_scale of more than 0, and finite, got inf"),
        ("v_scale", [1.0, 1.0], r"v_scale: expected .* shape \[1\]"),
    ],
)
def test_wrong_numbers_of_heads_are_named(name, numbers, message):
    q, caches, batch = small_batch()
    with pytest.raises(ValueError, match=message):
        attend(q, *caches, batch, **{name: torch.tensor(numbers, dtype=torch.float32)})


def test_a_tree_wider_than_its_masks_is_refused():
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([parents_of("star", 65, generator)], [0], 16, generator, words=1)
    caches = make_caches(batch, 1, 16, torch.float32, generator)
    with pytest.raises(ValueError, match="masks of more than 1 words for node 64"):
        attend(queries(batch, 1, 16, generator), *caches, batch)


def test_wrong_metadata_is_named():
    q, (k_cache, v_cache), batch = small_batch()
    with pytest.raises(ValueError, match=r"k_cache: .* shape \[any, any, any, 8\]"):
        attend(q[..., :8].contiguous(), k_cache, v_cache, batch)
    with pytest.raises(ValueError, match=r"v_cache: .* shape \[6, 16, 1, any\]"):
        attend(q, k_cache, v_cache[:5], batch)
    with pytest.raises(ValueError, match="v_cache: expected a float32 or bfloat16 or float16"):
        attend(q, k_cache, v_cache.double(), batch)
    with pytest.raises(ValueError, match="q: expected a contiguous"):
        attend(q.transpose(0, 1), k_cache, v_cache, batch)
    with pytest.raises(
        ValueError, match="v_scale: expected more than 0, and a finite float32, got 0"
    ):
        attend(q, k_cache, v_cache, batch, v_scale=0)
    two_heads = k_cache.repeat(1, 1, 2, 1), v_cache.repeat(1, 1, 2, 1)
    with pytest.raises(ValueError, match="q: expected a multiple of 2 heads, got 1"):
        attend(q[:, :1].contiguous(), *two_heads, batch)
