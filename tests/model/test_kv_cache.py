"""Pages are lent and come back, whatever the order; the recount sees every kind of mistake."""

import os
import random
from pathlib import Path

import pytest
import torch

from runtime.model.config import KVShape, ModelError
from runtime.model.kv_cache import KeptPath, OutOfPages, PagedKV, bytes_per_token, page_table
from runtime.model.open import CPU_KV_TOKENS, open_engine


@pytest.fixture
def shapes(pairs):
    return pairs("llama").ours.kv_shapes


@pytest.fixture
def kv(shapes):
    return PagedKV(shapes, 12, 4, torch.float32)


def test_shape_and_size(shapes):
    kv = PagedKV(shapes, 12, 4, torch.bfloat16)
    assert kv.pools[0].shape == (2, 2, 12, 4, 2, 16)
    assert kv.bytes_per_page * 12 == kv.pools[0].nbytes
    assert [kv.pages_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_taken_only_where_something_was_written(shapes):
    before = resident_bytes()
    kv = PagedKV(shapes, 2**18, 4, torch.float32)  # 512 MiB
    assert resident_bytes() - before < kv.pools[0].nbytes / 10
    kv.pools[0][:, :, -1] = 1
    assert kv.pools[0][:, :, -2:].sum() == kv.pools[0][:, :, -1].numel()
    assert resident_bytes() - before < kv.pools[0].nbytes / 10


def test_a_pool_that_no_machine_has_memory_for_is_a_sentence(tiny_pair):
    with pytest.raises(ModelError, match=r"no memory for a KV cache of \d+ tokens; ask for fewer"):
        open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: 2**42, 16)


@pytest.mark.parametrize("seed", range(5))
def test_random_lending(kv, seed):
    dice = random.Random(seed)
    held: list[list[int]] = []
    for _ in range(300):
        free = 12 - sum(map(len, held))
        assert kv.n_free == free
        n = dice.randrange(6)
        if dice.random() < 0.5 and held:
            kv.free(held.pop(dice.randrange(len(held))))
        elif n <= free:
            held.append(kv.allocate(n))
            assert len(held[-1]) == n
        else:
            with pytest.raises(OutOfPages, match=f"{n} pages asked for, {free} of 12 are free"):
                kv.allocate(n)
        kv.check(page for pages in held for page in pages)


def test_double_free_and_foreign_pages_are_assertions(kv):
    pages = kv.allocate(3)
    kv.free(pages[:1])
    with pytest.raises(AssertionError, match=f"page {pages[0]} freed twice"):
        kv.free(pages[:1])
    with pytest.raises(AssertionError, match="page 12 freed, the cache has 12"):
        kv.free([12])
    with pytest.raises(AssertionError, match="freed, the cache has"):
        kv.free([-1])


def test_recount_sees_leaks_doubles_and_unknown_pages(kv):
    pages = kv.allocate(3)
    with pytest.raises(AssertionError, match=r"neither free nor held: \[\d+\]"):
        kv.check(pages[1:])
    with pytest.raises(AssertionError, match="more than once"):
        kv.check([*pages, pages[0]])
    with pytest.raises(AssertionError, match="more than once or unknown"):
        kv.check([*pages, 99])


@pytest.mark.parametrize(("n_pages", "page_size"), [(0, 4), (4, 0)])
def test_an_empty_cache_is_refused(shapes, n_pages, page_size):
    with pytest.raises(ValueError, match="at least one page of one token"):
        PagedKV(shapes, n_pages, page_size, torch.float32)
    with pytest.raises(ValueError, match="expected at least 0"):
        PagedKV(shapes, 1, 1, torch.float32).allocate(-1)


def test_layers_of_unequal_shapes():
    """A window's layers, full ones of wider heads, and latent ones whose values are in the keys."""
    local, full, latent = KVShape(2, 16, 16), KVShape(1, 40, 24), KVShape(1, 48, 0)
    shapes = [local, full, local, latent]
    kv = PagedKV(shapes, 6, 4, torch.bfloat16)
    for shape, (keys, values) in zip(shapes, kv.layers, strict=True):
        assert keys.shape == (6, 4, shape.n_heads, shape.key_width)
        assert values.shape == (6, 4, shape.n_heads, shape.value_width)
    assert len(kv.pools) == 3
    assert kv.bytes_per_page == 4 * bytes_per_token(shapes, torch.bfloat16)
    assert bytes_per_token(shapes, torch.bfloat16) == 2 * (2 * 64 + 64 + 48)
    for index, layer in enumerate(kv.layers):  # each number has one place
        for numbers in layer:
            numbers.fill_(index + 1)
    for index, layer in enumerate(kv.layers):
        assert all((numbers == index + 1).all() for numbers in layer)
    assert all(pool.ne(0).all() for pool in kv.pools)


@pytest.mark.parametrize(
    "shapes",
    [
        [KVShape(2, 16, 16)] * 2,
        [KVShape(2, 16, 8), KVShape(1, 24, 24), KVShape(2, 16, 8), KVShape(1, 40, 0)],
    ],
)
def test_compaction_moves_rows_of_every_layer_and_nothing_else(shapes):
    """Against moving the rows one by one in copies of the layers."""
    kv, generator = PagedKV(shapes, 12, 4, torch.float32), torch.Generator().manual_seed(1)
    cached = [numbers for layer in kv.layers for numbers in layer]
    for numbers in cached:
        numbers.copy_(torch.randn(numbers.shape, generator=generator))
    requests = [
        KeptPath([7, 2, 9], 3, [0, 2, 3, 6, 7]),
        KeptPath([4], 0, [1, 3]),
        KeptPath([0, 5], 5, [0, 1]),
        KeptPath([11], 2, []),
    ]
    expected = [numbers.clone() for numbers in cached]
    for request in requests:
        places = [(page, offset) for page in request.pages for offset in range(4)]
        for index, node in enumerate(request.path):
            source, target = places[request.prefix_len + node], places[request.prefix_len + index]
            for after, before in zip(expected, cached, strict=True):
                after[target] = before[source]
    kv.compact(requests)
    assert all(map(torch.equal, cached, expected))


def test_page_table_is_filled_up_with_zeros():
    assert page_table([[3, 1], [], [5]]).tolist() == [[3, 1], [0, 0], [5, 0]]
    assert page_table([]).shape == (0, 0)


def test_a_pool_left_to_itself_holds_as_many_tokens_as_the_docs_say(tiny_pair):
    engine = open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: 0, 16)
    assert engine.kv.n_pages * 16 == CPU_KV_TOKENS
    assert engine.kv.bytes_per_page == 16 * bytes_per_token(engine.model.kv_shapes, torch.float32)
