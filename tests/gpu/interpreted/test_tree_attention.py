import dataclasses

import pytest
import torch
import triton.language as tl

from specedge_kernels import reference
from specedge_kernels.gpu import tree_attention as gpu
from specedge_kernels.gpu.plan import MIN_SPLIT_TOKENS
from specedge_kernels.gpu.tiles import Tile
from tests.kernels.cases import SHAPES, make_batch, make_caches, parents_of
from tests.kernels.families import draw, expected

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TILE = Tile(rows=32, keys=32, warps=4, stages=2, programs=1)
SPLIT = MIN_SPLIT_TOKENS.value


def queries(batch, heads, dim, generator, dtype=torch.float32):
    return torch.randn(int(batch.offsets[-1]), heads, dim, generator=generator).to(dtype)


def attend(device, q, caches, batch, tile=TILE, **options):
    return attend_with_lse(device, q, caches, batch, tile, **options)[0]


def attend_with_lse(
    device, q, caches, batch, tile=TILE, with_lse=False, batch_invariant=False, **scoring
):
    k_cache = caches[0].to(device)
    # A view of the keys stays one.
    shared = caches[1].untyped_storage() is caches[0].untyped_storage()
    v_cache = k_cache[..., : caches[1].shape[3]] if shared else caches[1].to(device)
    tensors = [q.to(device), k_cache, v_cache, *(table.to(device) for table in batch.tables)]
    there = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in scoring.items()}
    scale = q.shape[-1] ** -0.5 * there.pop("k_scale", 1.0)
    scoring = gpu.Scoring(scale, **there)
    out, lse = gpu.launch(*tensors, scoring, tile, with_lse, batch_invariant)
    return out.cpu(), lse.cpu()


def expect(q, caches, batch, **options):
    scale = q.shape[-1] ** -0.5
    return reference.tree_attention(q.double(), *caches, *batch.tables, scale=scale, **options)


def assert_close(got, want, dtype=torch.float32):
    assert not got.isnan().any()
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm()


@pytest.mark.every_value
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("page_size", "layout", "dim", "kv_heads", "group"),
    [(1, "NHD", 64, 1, 2), (16, "HND", 80, 1, 5), (32, "NHD", 96, 2, 1), (64, "HND", 128, 1, 7)],
)
def test_ragged_batches_equal_float64(device, shape, page_size, layout, dim, kv_heads, group):
    generator = torch.Generator().manual_seed(dim)
    sizes, prefixes = [1, 12, 0, 33], [0, TILE.keys - 1, 5, 2 * TILE.keys + 1]
    parents = [parents_of(shape, n, generator) for n in sizes]
    batch = make_batch(parents, prefixes, page_size, generator, cached=[0, 4, 0, 20])
    caches = make_caches(batch, kv_heads, dim, torch.float32, generator, layout)
    q = queries(batch, kv_heads * group, dim, generator)
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))


@pytest.mark.every_value
@pytest.mark.parametrize("tile", [Tile(16, 16, 4, 2, 1), Tile(64, 64, 4, 2, 1)], ids=str)
@pytest.mark.parametrize(("nodes", "words"), [(31, 1), (64, 1), (65, 2), (200, 4), (256, 4)])
def test_trees_across_mask_words_equal_float64(device, tile, nodes, words):
    generator = torch.Generator().manual_seed(nodes)
    parents = [parents_of("random", nodes, generator), parents_of("caterpillar", 30, generator)]
    cached = [nodes - 12, 0]
    batch = make_batch(parents, [37, 0], 16, generator, cached=cached, words=words)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 3, 64, generator)
    assert_close(attend(device, q, caches, batch, tile), expect(q, caches, batch))


@pytest.mark.parametrize("prefix", [0, 1, 15, 16, 31, 32, 33, 64])
def test_prefixes_around_pages_and_tiles(device, prefix):
    generator = torch.Generator().manual_seed(prefix)
    batch = make_batch([parents_of("binary", 7, generator)], [prefix], 16, generator)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 8, 64, generator)
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))


@pytest.mark.parametrize(
    ("prefix", "nodes", "window"),
    [
        (2 * SPLIT - 1, 1, -1),  # one split
        (2 * SPLIT, 1, -1),
        (2 * SPLIT + 1, 5, -1),
        (3 * SPLIT + 40, 33, -1),
        (6 * SPLIT + 1, 3, -1),  # six splits of whole tiles would leave the last one empty
        (5 * SPLIT, 3, 3 * SPLIT),
        (5 * SPLIT, 3, 2 * SPLIT + 1),
    ],
)
def test_splits_change_nothing_beyond_rounding(device, prefix, nodes, window):
    generator = torch.Generator().manual_seed(prefix)
    parents = [parents_of("random", n, generator) for n in (nodes, 2, 2)]
    batch = make_batch(parents, [prefix, 3, 2 * SPLIT + 7], 64, generator)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 2, 64, generator)
    tile = Tile(64, 64, 4, 2, 1)
    assert_close(
        attend(device, q, caches, batch, tile, window=window),
        expect(q, caches, batch, window=window),
    )


@pytest.mark.every_value
@pytest.mark.parametrize("query_dtype", list(TOLERANCE))
@pytest.mark.parametrize("cache_dtype", [*TOLERANCE, torch.float8_e4m3fn])
def test_every_pair_of_types(device, query_dtype, cache_dtype):
    generator = torch.Generator().manual_seed(1)
    batch = make_batch([parents_of("random", 20, generator)], [70], 16, generator)
    caches = make_caches(batch, 1, 72, cache_dtype, generator)
    q = queries(batch, 2, 72, generator, query_dtype)
    got = attend(device, q, caches, batch)
    assert got.dtype == query_dtype
    assert_close(got, expect(q, caches, batch), query_dtype)


@pytest.mark.parametrize("native", [True, False])
def test_every_value_of_float8(device, native, monkeypatch):
    if not native:
        monkeypatch.setattr(gpu, "converts_e4m3", lambda device: False)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = torch.where(every.isfinite(), every, 0).to(torch.float8_e4m3fn)
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([[-1]], [0], 1, generator)
    cache = values.expand(batch.n_pages, 1, 1, 256).contiguous()
    # One token, so the output is its value.
    got = attend(device, queries(batch, 1, 256, generator), (cache, cache), batch, v_scale=0.25)
    assert torch.equal(got[0, 0], values.float() / 4)


@pytest.mark.parametrize("options", [{}, {"window": 2 * SPLIT + 1, "softcap": 5.0}])
def test_the_weight_of_what_a_row_sees(device, options):
    generator = torch.Generator().manual_seed(6)
    # One request whose prefix is split, one whose prefix is not.
    parents = [parents_of("random", 10, generator), parents_of("random", 20, generator)]
    batch = make_batch(parents, [3 * SPLIT + 5, 40], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 3, 32, generator) * 3
    out, lse = attend_with_lse(device, q, caches, batch, with_lse=True, **options)
    want = expect(q, caches, batch, return_lse=True, **options)
    assert_close(out, want[0])
    torch.testing.assert_close(lse, want[1], rtol=2e-6, atol=2e-6)
    assert torch.equal(out, attend(device, q, caches, batch, **options))


@pytest.mark.parametrize(
    ("dim", "value_dim"), [(192, 128), (64, 80), (80, 16), (40, 72), (512, 512)]
)
def test_values_may_be_narrower_or_wider_than_keys(device, dim, value_dim):
    generator = torch.Generator().manual_seed(dim)
    parents = [parents_of("random", 10, generator), [-1]]
    batch = make_batch(parents, [40, 2 * SPLIT], 16, generator)
    caches = make_caches(batch, 1, dim, torch.float32, generator, value_dim=value_dim)
    q = queries(batch, 2, dim, generator)
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))


@pytest.mark.parametrize("cached", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize(("dim", "value_dim"), [(576, 512), (80, 64), (80, 80), (64, 32)])
def test_values_may_be_a_part_of_the_keys(device, dim, value_dim, cached, monkeypatch):
    generator = torch.Generator().manual_seed(dim)
    batch = make_batch([parents_of("random", 10, generator)], [75], 16, generator)
    keys = make_caches(batch, 1, dim, cached, generator)[0]
    caches = keys, keys[..., :value_dim]
    q = queries(batch, 8, dim, generator)
    scales = {"k_scales": torch.tensor([0.3]), "v_scales": torch.tensor([2.0])}
    got = attend(device, q, caches, batch, **scales)
    want = expect(q, caches, batch, k_scale=scales["k_scales"], v_scale=scales["v_scales"])
    assert_close(got, want)
    monkeypatch.setattr(gpu, "are_parts", lambda *_: False)
    assert torch.equal(got, attend(device, q, caches, batch, **scales))


@pytest.mark.parametrize("options", [{}, {"window": 2 * SPLIT + 1, "softcap": 5.0}, {"window": 0}])
def test_sinks_and_scales_of_each_head(device, options):
    generator = torch.Generator().manual_seed(6)
    # One request whose prefix is split, one whose prefix is not.
    parents = [parents_of("random", 10, generator), parents_of("random", 20, generator)]
    batch = make_batch(parents, [3 * SPLIT + 5, 40], 16, generator)
    caches = make_caches(batch, 2, 32, torch.float8_e4m3fn, generator)
    q = queries(batch, 6, 32, generator)
    sinks = torch.tensor([0.0, 9.0, -9.0, 300.0, -300.0, -torch.inf])
    scales = torch.tensor([0.3, 1.7]), torch.tensor([2.0, 0.1])
    ours = {"sinks": sinks, "k_scales": scales[0], "v_scales": scales[1]} | options
    out, lse = attend_with_lse(device, q, caches, batch, with_lse=True, **ours)
    theirs = {"sinks": sinks, "k_scale": scales[0], "v_scale": scales[1]} | options
    want = expect(q, caches, batch, return_lse=True, **theirs)
    assert_close(out, want[0])
    torch.testing.assert_close(lse, want[1], rtol=2e-6, atol=2e-6)


@pytest.mark.every_value
@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_what_families_need_equals_float64(device, seed):
    family = draw(seed, prefix=100, rows=7)
    options = {}
    for name, value in family.options.items():
        by_head = name in ("k_scale", "v_scale") and isinstance(value, torch.Tensor)
        options[name + "s" if by_head else name] = value
    del options["scale"]
    work = (family.q, family.caches, family.batch, Tile(64, 64, 4, 2, 1))
    for batch_invariant in (False, True):
        out, lse = attend_with_lse(device, *work, True, batch_invariant, **options)
        want, want_lse = expected(family)
        assert_close(out, want)
        torch.testing.assert_close(lse.double(), want_lse, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("dim", [3, 8, 256])
def test_any_head_dimension(device, dim):
    generator = torch.Generator().manual_seed(dim)
    batch = make_batch([parents_of("random", 10, generator)], [40], 16, generator)
    caches = make_caches(batch, 2, dim, torch.float32, generator)
    q = queries(batch, 4, dim, generator)
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))


@pytest.mark.every_value
@pytest.mark.parametrize("window", [1, 9, 32, 33, 64, 130])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_windows_count_the_path_not_the_slots(device, window, softcap):
    generator = torch.Generator().manual_seed(window)
    parents = [
        parents_of("random", 70, generator),
        parents_of("chain", 40, generator),
        parents_of("caterpillar", 40, generator),
    ]
    batch = make_batch(parents, [150, 0, 33], 16, generator, cached=[50, 0, 0])
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 2, 32, generator) * 5
    options = {"window": window, "softcap": softcap}
    assert_close(attend(device, q, caches, batch, **options), expect(q, caches, batch, **options))


def test_a_deep_tree_drops_nodes_of_every_word(device):
    generator = torch.Generator().manual_seed(0)
    # Not a chain: node 0 and node 1 are siblings, so no depth equals its node after node 0.
    parents = [[-1, -1, *range(1, 199)]]
    for window in (1, 63, 64, 65, 128):
        batch = make_batch(parents, [20], 16, generator, cached=[180], words=4)
        caches = make_caches(batch, 1, 16, torch.float32, generator)
        q = queries(batch, 2, 16, generator)
        got = attend(device, q, caches, batch, window=window)
        assert_close(got, expect(q, caches, batch, window=window))


def test_a_window_of_nothing_gives_zeros_of_no_weight(device):
    generator = torch.Generator().manual_seed(0)
    parents = [parents_of("star", 64, generator), [-1]]
    batch = make_batch(parents, [10, 600], 16, generator, cached=[60, 0])
    caches = make_caches(batch, 1, 16, torch.float32, generator)
    q = queries(batch, 1, 16, generator)
    out, lse = attend_with_lse(device, q, caches, batch, with_lse=True, window=0)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_pages_before_the_window_are_never_looked_at(device):
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([parents_of("random", 20, generator)], [500], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 2, 32, generator)
    want = attend(device, q, caches, batch, window=30)
    unused = (500 + 1 - 30) // 16  # pages; their last one shares a tile of keys with used ones
    for cache in caches:
        cache[batch.page_table[0, :unused].long()] = float("nan")
    batch.page_table[0, :unused] = 2**30  # far outside the cache: reading it would be a fault
    assert torch.equal(attend(device, q, caches, batch, window=30), want)


def test_prompt_chunks_beyond_the_mask(device):
    generator = torch.Generator().manual_seed(4)
    parents = [parents_of("chain", 200, generator), parents_of("chain", 90, generator)]
    batch = make_batch(parents, [0, 77], 16, generator, cached=[100, 0], words=1)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 3, 32, generator)
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))
    want = expect(q, caches, batch, window=70)
    assert_close(attend(device, q, caches, batch, window=70), want)


def test_no_requests_no_rows_no_prefix(device):
    generator = torch.Generator().manual_seed(0)
    none = make_batch([], [], 16, generator)
    caches = make_caches(none, 1, 16, torch.float32, generator)
    assert attend(device, torch.zeros(0, 2, 16), caches, none).shape == (0, 2, 16)
    cached_only = make_batch([[-1, 0]], [5], 16, generator, cached=[2])
    caches = make_caches(cached_only, 1, 16, torch.float32, generator)
    assert attend(device, torch.zeros(0, 2, 16), caches, cached_only).shape == (0, 2, 16)
    one = make_batch([[-1]], [0], 16, generator)
    caches = make_caches(one, 1, 16, torch.float32, generator)
    value = caches[1][one.page_table[0, 0], 0, 0]
    assert torch.equal(attend(device, torch.randn(1, 1, 16), caches, one)[0, 0], value)


@pytest.mark.every_value
# The interpreter cuts off what bfloat16 has no bits for.
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e6), (torch.float16, 30)])
@pytest.mark.parametrize("options", [{}, {"window": 1}], ids=str)
def test_a_row_that_sees_one_token_gets_its_value(device, dtype, largest, options):
    generator = torch.Generator().manual_seed(2)
    batch = make_batch([parents_of("star", 70, generator)], [0], 16, generator, words=2)
    caches = make_caches(batch, 1, 64, dtype, generator)
    # A product of a score and its unit is rounded, by the more the larger it is.
    q = queries(batch, 2, 64, generator, dtype) * largest
    got = attend(device, q, caches, batch, **options)
    first = caches[1][batch.page_table[0].long()].flatten(0, 1)[: int(batch.n_nodes[0])]
    alone = slice(None) if "window" in options else slice(1)
    assert torch.equal(got[alone], first[alone].expand(-1, 2, -1))


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-12])
def test_any_scale(device, scale, softcap):
    generator = torch.Generator().manual_seed(3)
    batch = make_batch([parents_of("random", 20, generator)], [2 * SPLIT + 5], 16, generator)
    caches = make_caches(batch, 2, 32, torch.float8_e4m3fn, generator)
    q, scales = queries(batch, 4, 32, generator), torch.tensor([0.3, 1.7])
    tensors = [tensor.to(device) for tensor in (q, *caches, *batch.tables)]
    scoring = gpu.Scoring(scale, softcap, k_scales=scales.to(device))
    out, lse = gpu.launch(*tensors, scoring, TILE, with_lse=True)
    given = {"scale": scale, "softcap": softcap, "k_scale": scales, "return_lse": True}
    want = reference.tree_attention(q.double(), *caches, *batch.tables, **given)
    assert_close(out.cpu(), want[0])
    torch.testing.assert_close(lse.cpu(), want[1], rtol=2e-6, atol=2e-6)


def test_offsets_of_either_type_and_totals_in_any_parts(device, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    batch = make_batch([parents_of("random", 20, generator)], [2 * SPLIT + 5], 16, generator)
    caches = make_caches(batch, 2, 64, torch.float32, generator)
    q = queries(batch, 4, 64, generator)
    want = attend(device, q, caches, batch)
    monkeypatch.setattr(gpu, "offset_type", lambda *_: tl.int64)
    assert torch.equal(attend(device, q, caches, batch), want)
    for parts in (1, 8, TILE.keys):
        monkeypatch.setattr(gpu, "n_totals", lambda _, parts=parts: parts)
        assert_close(attend(device, q, caches, batch), want)


def test_large_scores_do_not_overflow(device):
    generator = torch.Generator().manual_seed(8)
    batch = make_batch([parents_of("random", 30, generator)], [100], 16, generator)
    caches = make_caches(batch, 1, 64, torch.float32, generator)
    q = queries(batch, 2, 64, generator) * 1e4
    assert_close(attend(device, q, caches, batch), expect(q, caches, batch))


def test_batch_mates_change_no_bit(device):
    generator = torch.Generator().manual_seed(13)
    parents = [parents_of("random", n, generator) for n in (20, 3, 40)]
    batch = make_batch(parents, [2 * SPLIT + 9, 10, 600], 16, generator)
    caches = make_caches(batch, 1, 32, torch.float32, generator)
    q = queries(batch, 2, 32, generator)
    together = attend(device, q, caches, batch)
    for b in range(3):
        rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        alone = dataclasses.replace(
            batch,
            page_table=batch.page_table[b : b + 1].repeat(1, 3),
            prefix_lens=batch.prefix_lens[b : b + 1],
            n_nodes=batch.n_nodes[b : b + 1],
            offsets=torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            ancestors=batch.ancestors[rows],
            depth=batch.depth[rows],
        )
        assert torch.equal(attend(device, q[rows], caches, alone), together[rows])
