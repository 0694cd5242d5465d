"""Batches, drafting with cached nodes, compaction, and what a request may not ask for."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from runtime.model.batch import Joined
from runtime.model.engine import Engine, KeptPath, PagedKV, TreeRequest
from runtime.model.transformer import Transformer
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge, random_tokens


@pytest.fixture(params=["llama", "mistral-window", "qwen3"])
def pair(request, pairs):
    return pairs(request.param)


@pytest.fixture
def engine(pairs):
    return tiny.engine_of(pairs("llama").ours, n_pages=16)


@pytest.mark.parametrize("page_size", [1, 4, 32])
def test_ragged_batch(pair, generator, page_size):
    """A prompt chunk, plain decoding, a tree, and a request that wants no logits, in one pass."""
    engine = tiny.engine_of(pair.ours, n_pages=256 // page_size, page_size=page_size)
    engine.kv.pools[0].fill_(torch.nan)
    scattered = torch.randperm(engine.kv.n_pages, generator=generator).tolist()
    share = engine.kv.pages_for(48)
    pages = [scattered[i * share : (i + 1) * share] for i in range(4)]
    prompts = [random_tokens(n, generator) for n in (0, 11, 17, 3)]
    for prompt, own in zip(prompts[1:], pages[1:], strict=True):
        engine.forward([chain(prompt, 0, own)])

    chunk, tree = random_tokens(14, generator), random_tokens(12, generator)
    parents = tiny.random_tree(12, generator)
    logits = engine.forward(
        [
            TreeRequest(chunk, range(-1, 13), 0, pages[0], [13, 2]),
            TreeRequest([5], [-1], 11, pages[1], [0]),
            TreeRequest(tree, parents, 17, pages[2], [7, 11]),
            TreeRequest([6, 7], [-1, 0], 3, pages[3], []),
        ]
    )
    texts = [chunk, chunk[:3], [*prompts[1], 5]]
    texts += [prompts[2] + [tree[i] for i in tiny.path_to(parents, node)] for node in (7, 11)]
    assert_close(logits, torch.stack([judge(pair.theirs, text)[-1] for text in texts]))


def test_drafting_level_by_level_equals_one_pass(pair, generator):
    """Each pass brings a frontier whose ancestors, and their siblings, are cached already."""
    prompt, tree = random_tokens(10, generator), random_tokens(14, generator)
    parents = [-1, -1, 0, 0, 1, 2, 4, 3, 4, 5, 6, 6, 8, 9]
    engine = tiny.engine_of(pair.ours)
    pages = engine.kv.allocate(8)
    engine.forward([chain(prompt, 0, pages)])
    bounds = [0, 2, 5, 9, 14]
    logits = [
        engine.forward([TreeRequest(tree[a:b], parents[:b], 10, pages, range(b - a))])
        for a, b in pairwise(bounds)
    ]
    at_once = engine.forward([TreeRequest(tree, parents, 10, pages, range(14))])
    assert torch.equal(torch.cat(logits), at_once)
    path = tiny.path_to(parents, 13)
    expected = judge(pair.theirs, prompt + [tree[i] for i in path])[-1]
    assert_close(at_once[13:], expected[None])


def test_compacted_path_goes_on_as_if_it_had_been_decoded(pair, generator):
    prompts = [random_tokens(n, generator) for n in (7, 12, 5)]
    parents, path = [-1, 0, 0, -1, 2, 4, 1, 4], [0, 2, 4, 7]
    trees = [random_tokens(len(parents), generator) for _ in prompts]
    engine = tiny.engine_of(pair.ours)
    pages = [engine.kv.allocate(6) for _ in prompts]
    for prompt, tree, own in zip(prompts, trees, pages, strict=True):
        engine.forward([chain(prompt, 0, own)])
        engine.forward([TreeRequest(tree, parents, len(prompt), own, [])])
    paths = [path, [0, 1], []]
    kept = zip(pages, prompts, paths, strict=True)
    engine.compact([KeptPath(own, len(prompt), path) for own, prompt, path in kept])

    texts = [p + [t[i] for i in kept] for p, t, kept in zip(prompts, trees, paths, strict=True)]
    after = [chain([9], len(text), own) for text, own in zip(texts, pages, strict=True)]
    expected = torch.stack([judge(pair.theirs, [*text, 9])[-1] for text in texts])
    assert_close(engine.forward(after), expected)


@pytest.mark.parametrize("n_nodes", [64, 65, 128, 129, 256])
def test_wide_trees_take_more_mask_words(pairs, generator, n_nodes):
    pair = pairs("llama-tied")
    # the context of the small models is short of 256 positions, though no path is
    engine = tiny.engine_of(pair.ours, n_pages=80)
    parents = [max(-1, (node - 3) // 2) for node in range(n_nodes)]
    tree, prompt = random_tokens(n_nodes, generator), [3, 1, 4]
    pages = engine.kv.allocate(66)
    engine.forward([chain(prompt, 0, pages)])
    nodes = [0, 63, n_nodes // 2, n_nodes - 1]
    request = TreeRequest(tree, parents, len(prompt), pages, nodes)
    words = {64: 1, 65: 2, 128: 2, 129: 4, 256: 4}[n_nodes]
    assert Joined([request], engine.kv.page_size).size().words == words
    texts = [prompt + [tree[i] for i in tiny.path_to(parents, node)] for node in nodes]
    expected = torch.stack([judge(pair.theirs, text)[-1] for text in texts])
    assert_close(engine.forward([request]), expected)


def test_a_tree_may_stand_out_beyond_the_context_and_its_inner_nodes_are_right(pairs, generator):
    pair = pairs("llama")
    engine = tiny.engine_of(pair.ours)
    prompt, pages = random_tokens(126, generator), engine.kv.allocate(40)
    engine.forward([chain(prompt, 0, pages)])
    request = TreeRequest([4, 5, 6, 7], [-1, 0, 0, 1], 126, pages, [2, 3])
    logits = engine.forward([request])
    assert_close(logits[:1], judge(pair.theirs, [*prompt, 4, 6])[-1:])
    assert logits[1].isfinite().all()


def test_no_requests_no_logits(engine):
    assert engine.forward([]).shape == (0, tiny.VOCAB)
    engine.compact([])


GOOD = TreeRequest([1, 2], [-1, 0, 0], 5, [0, 1], [1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": []}, "brings 0 new tokens"),
        ({"tokens": [1, 2, 3, 4]}, "4 new tokens and 3 parents"),
        ({"tokens": [1, tiny.VOCAB]}, f"token {tiny.VOCAB} is out of range; expected 0 to 119"),
        ({"tokens": [-1, 0]}, "token -1 is out of range"),
        ({"parents": [-1, 0, 2]}, "node 2 has parent 2; expected -1 or an earlier node"),
        ({"parents": [-1, -2, 0]}, "node 1 has parent -2"),
        ({"prefix_len": -1}, "prefix_len is -1"),
        ({"prefix_len": 6}, "2 pages of 4 tokens cannot hold a prefix of 6 and 3 nodes"),
        ({"prefix_len": 382, "pages": [0] * 100}, "longer than the model's context of 128 tokens"),
        (
            {"parents": [-1, 0, 1], "prefix_len": 126, "pages": [0] * 40},
            "longer than the model's context of 128 tokens",
        ),
        ({"pages": [0, 16]}, "page 16 is out of range; expected 0 to 15"),
        ({"pages": [-1, 3]}, "page -1 is out of range"),
        ({"logit_rows": [2]}, "logit row 2 is out of range; expected 0 to 1"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(engine, change, sentence):
    bad = dataclasses.replace(GOOD, **change)
    with pytest.raises(ValueError, match=sentence):
        engine.forward([dataclasses.replace(GOOD, pages=[4, 5]), bad])
    assert not engine.kv.pools[0].any()


def test_a_tree_beyond_the_masks_is_refused_but_a_chain_is_not(engine):
    engine.model = with_context(engine.model, 1000)
    tokens, pages = [1] * 257, list(range(16)) * 5
    star = TreeRequest(tokens, [-1] + [0] * 256, 0, pages, [])
    with pytest.raises(ValueError, match="a tree of 257 nodes; expected at most 256, or a chain"):
        engine.forward([star])
    long_chain = chain(tokens, 0, pages)
    assert Joined([long_chain], engine.kv.page_size).size().words == 1


def test_a_cache_of_another_model_is_refused(pairs):
    kv = PagedKV(pairs("qwen3").ours.kv_shapes, 4, 4, torch.float32)
    with pytest.raises(ValueError, match="another model: layers of 2 with 1 heads of 32"):
        Engine(pairs("llama").ours, kv)


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (KeptPath([0, 1], 2, [2, 1]), r"increasing node indices, got \[2, 1\]"),
        (KeptPath([0, 1], 2, [-1, 1]), "increasing node indices"),
        (KeptPath([0, 1], 2, [0, 6]), "node 6 after a prefix of 2 tokens lies outside 2 pages"),
    ],
)
def test_impossible_compactions_are_refused(engine, kept, sentence):
    with pytest.raises(ValueError, match=sentence):
        engine.compact([kept])


def with_context(model: Transformer, max_context: int) -> Transformer:
    """The same weights under a longer context."""
    config = dataclasses.replace(model.config, max_context=max_context)
    return Transformer(config, model.embedding, model.layers, model.norm, model.head)
