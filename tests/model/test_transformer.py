"""Our logits against transformers' for every family and every way of feeding the same tokens."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.model import weights
from runtime.model.batch import Joined
from runtime.model.engine import TreeRequest
from runtime.model.formats import FLOATS
from runtime.model.transformer import Linear, Transformer
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge, random_tokens

PROMPT_TOKENS = 21


@pytest.fixture(params=sorted(tiny.MODELS))
def pair(request, pairs):
    return pairs(request.param)


def test_one_shot_prefill(pair, generator):
    tokens = random_tokens(PROMPT_TOKENS, generator)
    engine = tiny.engine_of(pair.ours)
    logits = engine.forward([chain(tokens, 0, engine.kv.allocate(8))])
    assert logits.dtype == torch.float32
    assert_close(logits, judge(pair.theirs, tokens))


@pytest.mark.parametrize("chunk", [1, 8])
def test_chunked_prefill_and_token_by_token(pair, generator, chunk):
    tokens = random_tokens(PROMPT_TOKENS, generator)
    engine = tiny.engine_of(pair.ours)
    pages = engine.kv.allocate(8)
    logits = [
        engine.forward([chain(tokens[first : first + chunk], first, pages)])
        for first in range(0, len(tokens), chunk)
    ]
    assert_close(torch.cat(logits), judge(pair.theirs, tokens))


def test_each_tree_node_equals_its_own_path(pair, generator):
    prompt, tree = random_tokens(9, generator), random_tokens(20, generator)
    parents = tiny.random_tree(len(tree), generator)
    engine = tiny.engine_of(pair.ours)
    pages = engine.kv.allocate(8)
    engine.forward([chain(prompt, 0, pages, all_logits=False)])
    logits = engine.forward([TreeRequest(tree, parents, len(prompt), pages, range(len(tree)))])
    expected = torch.stack(
        [
            judge(pair.theirs, prompt + [tree[i] for i in tiny.path_to(parents, node)])[-1]
            for node in range(len(tree))
        ]
    )
    assert_close(logits, expected)


def test_a_chain_longer_than_its_mask_beside_a_tree(pairs, generator):
    pair = pairs("mistral-window")
    engine = tiny.engine_of(pair.ours)
    tokens, tree, parents = random_tokens(100, generator), [5, 6, 7], [-1, 0, 0]
    prompt = chain(tokens, 0, engine.kv.allocate(25))
    beside = TreeRequest(tree, parents, 0, engine.kv.allocate(1), [2])
    assert Joined([prompt, beside], engine.kv.page_size).size().words == 1
    logits = engine.forward([prompt, beside])
    assert_close(logits[:100], judge(pair.theirs, tokens))
    assert_close(logits[100:], judge(pair.theirs, [5, 7])[-1:])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_unpacked_products_as_on_a_gpu(pairs, generator, monkeypatch, name):
    """Off the CPU weights stay as they are and torch multiplies; the result is the same."""

    def unpacked(self, weight, bias=None, exact=False, batch_invariant=True):
        self.out_features, self.by_torch, self.weight, self.bias = len(weight), True, weight, bias

    pair = pairs(name)
    monkeypatch.setattr(Linear, "__init__", unpacked)
    monkeypatch.setattr(Transformer, "_decoder", lambda self: None)
    model = weights.load(pair.folder)
    assert all(layer.mlp.down.by_torch for layer in model.layers)
    tokens = random_tokens(PROMPT_TOKENS, generator)
    engine = tiny.engine_of(model)
    logits = engine.forward([chain(tokens, 0, engine.kv.allocate(8))])
    assert_close(logits, judge(pair.theirs, tokens))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_weights_and_cache(pairs, generator, name):
    pair = pairs("llama")
    tokens = random_tokens(PROMPT_TOKENS, generator)
    engine = tiny.engine_of(weights.load(pair.folder, name), dtype=FLOATS[name])
    logits = engine.forward([chain(tokens, 0, engine.kv.allocate(8))])
    assert logits.dtype == torch.float32
    assert_close(logits, judge(pair.theirs, tokens), tolerance=0.05)


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_products_off_the_cpu_are_ours_unless_they_may_follow_the_batch(batch_invariant):
    """On tensors that have shapes alone."""
    weight, x = torch.empty(96, 64, device="meta"), torch.empty(3, 64, device="meta")
    product = Linear(weight, torch.empty(96, device="meta"), batch_invariant=batch_invariant)
    with Called() as called:
        out = product(x)
    assert (out.shape, out.dtype) == ((3, 96), torch.float32)
    assert ("specedge::linear" in called.names) == batch_invariant


class Called(TorchDispatchMode):
    """The names of the ops that are called within."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))
