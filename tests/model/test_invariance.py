"""A row has the same bits alone, in a tree, in a prompt chunk and among strangers.

This is what makes the text of speculative decoding equal that of plain decoding on the CPU.
"""

from itertools import pairwise

import pytest
import torch

from runtime.model import weights
from runtime.model.engine import TreeRequest
from runtime.model.formats import name_of
from runtime.model.open import open_engine
from tests.model import tiny
from tests.model.tiny import chain, random_tokens

MODELS = ["llama-tied", "mistral-window", "qwen2-window", "qwen3", "qwen3-yarn", "qwen2-moe"]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=MODELS)
def folder(request, pairs):
    return pairs(request.param).folder


def decoded(engine, tokens, n_prompt):
    """Logits of the tokens after the prompt, one pass each, [len(tokens) - n_prompt, V]."""
    pages = engine.kv.allocate(engine.kv.pages_for(len(tokens)))
    engine.forward([chain(tokens[:n_prompt], 0, pages)])
    rows = [engine.forward([chain([tokens[i]], i, pages)]) for i in range(n_prompt, len(tokens))]
    engine.kv.free(pages)
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tree_among_strangers_equals_plain_decoding(folder, dtype, threads, generator):
    engine = tiny.engine_of(
        weights.load(folder, name_of(torch.empty(0, dtype=dtype))), n_pages=128, dtype=dtype
    )
    prompt, tree = random_tokens(13, generator), random_tokens(24, generator)
    parents = tiny.random_tree(len(tree), generator)
    deepest = max(range(len(tree)), key=lambda node: len(tiny.path_to(parents, node)))
    path = tiny.path_to(parents, deepest)
    plain = decoded(engine, prompt + [tree[node] for node in path], len(prompt))

    pages, others = engine.kv.allocate(12), [engine.kv.allocate(16) for _ in range(3)]
    engine.forward([chain(prompt, 0, pages)])
    requests = [
        chain(random_tokens(n, generator), 0, o) for n, o in zip((1, 9, 60), others, strict=True)
    ]
    requests.insert(2, TreeRequest(tree, parents, len(prompt), pages, path))
    logits = engine.forward(requests)
    assert torch.equal(logits[1 + 9 : 1 + 9 + len(path)], plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prompt_in_one_piece_equals_any_pieces(folder, dtype, threads, generator):
    engine = tiny.engine_of(weights.load(folder, name_of(torch.empty(0, dtype=dtype))), dtype=dtype)
    tokens = random_tokens(40, generator)
    pages = engine.kv.allocate(20)
    whole = engine.forward([chain(tokens, 0, pages)])
    cuts = [0, 1, 3, 17, 33, 40]
    pieces = [engine.forward([chain(tokens[a:b], a, pages)]) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), whole)


def test_eight_bit_keys_and_values(pairs, generator):
    """Other numbers than in float32, though near them, and the same bits in a tree."""
    folder = str(pairs("qwen3").folder)
    full, small = (
        open_engine(folder, "float32", "cpu", lambda model: 256, 4, kv_dtype=kv_dtype)
        for kv_dtype in ("same", "float8_e4m3")
    )
    assert (full.kv.pools[0].element_size(), small.kv.pools[0].element_size()) == (4, 1)
    prompt, tree = random_tokens(13, generator), random_tokens(12, generator)
    parents = tiny.random_tree(len(tree), generator)
    path = tiny.path_to(parents, 11)
    texts = [decoded(e, prompt + [tree[node] for node in path], 13) for e in (full, small)]
    assert not torch.equal(*texts)
    tiny.assert_close(texts[1], texts[0], tolerance=0.3)
    pages = small.kv.allocate(8)
    small.forward([chain(prompt, 0, pages)])
    assert torch.equal(small.forward([TreeRequest(tree, parents, 13, pages, path)]), texts[1])
