"""All layers in one call against the public ops one after another, each checked on its own."""

import copy

import pytest
import torch

from runtime.model import weights
from runtime.model.batch import TreeRequest
from runtime.model.engine import Engine, PagedKV
from tests.model import tiny
from tests.model.tiny import chain, random_tokens

FAMILIES = [
    *("llama-tied", "mistral-window", "qwen2", "qwen2-window", "qwen3-yarn"),
    *("qwen3-moe", "mixtral-window"),
]
E4M3 = torch.float8_e4m3fn
DTYPES = [
    ("float32", torch.float32),
    ("bfloat16", torch.bfloat16),
    ("float16", torch.float32),
    ("float32", E4M3),
]


def both(model, kv_dtype):
    """Two engines: one runs the layers in one call, the other op by op."""
    apart = copy.copy(model)
    apart.decoder = None
    assert model.decoder is not None
    return [Engine(m, PagedKV(m.kv_shapes, 64, 4, kv_dtype)) for m in (model, apart)]


def requests(prompt, generator):
    """A tree over a cached prompt, a prompt chunk that wants some rows, and one that wants none."""
    tree, parents = random_tokens(20, generator), tiny.random_tree(20, generator)
    chunk = random_tokens(9, generator)
    return [
        TreeRequest(tree, parents, len(prompt), range(12), [19, 3, 3, 0]),
        TreeRequest(chunk, range(-1, 8), 0, range(12, 15), [8, 2]),
        TreeRequest(chunk[:5], range(-1, 4), 0, range(15, 17), []),
    ]


def assert_same_kv(engines):
    kept = [engine.kv.pools[0].view(torch.uint8) for engine in engines]
    assert torch.equal(*kept)


@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_are_those_of_the_ops_one_by_one(pairs, family, dtype, kv_dtype, generator):
    engines = both(weights.load(pairs(family).folder, dtype), kv_dtype)
    prompt = random_tokens(13, generator)
    batches = [[chain(prompt, 0, range(4))], requests(prompt, generator)]
    for batch in batches:
        fused, apart = (engine.forward(batch) for engine in engines)
        assert torch.equal(fused, apart)
        assert_same_kv(engines)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantised_experts_too(pairs, kind, generator):
    engines = both(weights.load(pairs("qwen3-moe").folder, kind), torch.float32)
    prompt = random_tokens(13, generator)
    for batch in ([chain(prompt, 0, range(4))], requests(prompt, generator)):
        assert torch.equal(*(engine.forward(batch) for engine in engines))


def test_a_batch_of_which_nothing_is_wanted_still_fills_the_cache(pairs, generator):
    engines = both(pairs("qwen3").ours, torch.float32)
    batch = requests([], generator)[2:]
    for engine in engines:
        assert engine.forward(batch).shape == (0, tiny.VOCAB)
    assert_same_kv(engines)
    assert engines[0].kv.pools[0][-1].any()


def test_rows_that_nobody_wants_leave_the_bits_of_those_wanted(pairs, generator):
    engine = tiny.engine_of(pairs("mistral-window").ours)
    tokens = random_tokens(30, generator)
    every = engine.forward([chain(tokens, 0, range(8))])
    last = engine.forward([chain(tokens, 0, range(8), all_logits=False)])
    assert torch.equal(last, every[-1:])


def test_a_reduced_head_and_drafting_level_by_level(pairs, generator):
    model = copy.copy(pairs("llama").ours)
    model.head_ids = torch.arange(tiny.VOCAB)
    engines = both(model, torch.bfloat16)
    prompt, tree = random_tokens(6, generator), random_tokens(5, generator)
    parents = [-1, -1, 0, 0, 1]
    batches = [
        [chain(prompt, 0, range(4))],
        [TreeRequest(tree[:2], parents[:2], 6, range(4), range(2))],
        [TreeRequest(tree[2:], parents, 6, range(4), range(3))],
    ]
    for batch in batches:
        assert torch.equal(*(engine.forward(batch) for engine in engines))
    assert_same_kv(engines)
