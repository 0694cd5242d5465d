"""Adapters beside a model's products: against the merged weights W + s B A, in transformers."""

import pytest
import torch

from runtime.model import weights
from runtime.model.adapted import adapt
from runtime.model.adapter import base_of, load_adapter
from runtime.model.engine import TreeRequest
from tests.model import tiny
from tests.model.adapters import EVERYTHING, by_alpha, merged, random_pairs, save_folder
from tests.model.tiny import assert_close, judge, path_to, random_tokens, random_tree

SHARED = tuple(f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down"))
PARTS = {
    **dict.fromkeys(("qwen3-moe", "mixtral"), EVERYTHING[:4]),
    "qwen2-moe": (*EVERYTHING[:4], *SHARED),
}


@pytest.fixture
def adapted(pairs, tmp_path):
    """A function from a model's name to our model with two adapters, and theirs merged."""

    def of(name: str, weights_as: str = "stored"):
        pair = pairs(name)
        parts = PARTS.get(name, EVERYTHING)
        some = random_pairs(pair.theirs, ("q_proj", "v_proj", "down_proj")[: len(parts) - 2], 3, 1)
        every = random_pairs(pair.theirs, parts, 5, 2)
        some = {module: (a.bfloat16(), b.bfloat16()) for module, (a, b) in some.items()}
        if name == "qwen3":
            every = {module: (a.bfloat16(), b.bfloat16()) for module, (a, b) in every.items()}
        paths = (
            save_folder(tmp_path / "a", some),
            save_folder(tmp_path / "b", every, use_rslora=True),
        )
        ours = weights.load(pair.folder, weights_as)
        base = base_of(ours.config)
        adapt(ours, [load_adapter(path.name, path, base) for path in paths])
        theirs = [pair.theirs, merged(pair.theirs, some, by_alpha(some, 8))]
        return ours, [*theirs, merged(pair.theirs, every, by_alpha(every, 8, root=True))]

    return of


def requests_of(generator, kv, adapters):
    """A request for each adapter: a prompt in the cache, and a tree under it."""
    requests, texts = [], []
    for adapter in adapters:
        n = int(torch.randint(1, 20, (1,), generator=generator))
        prompt, tree = random_tokens(n, generator), random_tokens(9, generator)
        parents, pages = random_tree(9, generator), kv.allocate(12)
        requests.append((prompt, TreeRequest(tree, parents, n, pages, range(9), adapter=adapter)))
        texts.append([prompt + [tree[i] for i in path_to(parents, node)] for node in range(9)])
    return requests, texts


@pytest.mark.parametrize(
    "name", ["llama", "llama-biases", "qwen3", "qwen2-window", "qwen2-moe", "qwen3-moe"]
)
def test_trees_of_a_batch_are_those_of_the_merged_models(adapted, generator, name):
    ours, theirs = adapted(name)
    engine = tiny.engine_of(ours, n_pages=128)
    requests, texts = requests_of(generator, engine.kv, [0, -1, 1, 1, 0])
    engine.forward(
        [
            TreeRequest(prompt, range(-1, len(prompt) - 1), 0, tree.pages, (), adapter=tree.adapter)
            for prompt, tree in requests
        ]
    )
    logits = engine.forward([tree for _, tree in requests]).split(9)
    for rows, (_, tree), paths in zip(logits, requests, texts, strict=True):
        expected = [judge(theirs[tree.adapter + 1], path)[-1] for path in paths]
        assert_close(rows, torch.stack(expected))


@pytest.mark.parametrize("name", ["llama-biases", "mixtral"])
@pytest.mark.parametrize("weights_as", ["stored", "q8_0"])
def test_bits_do_not_depend_on_batch_mates(adapted, pairs, generator, name, weights_as):
    """Without an adapter they are those of a model that has none, which runs as one call."""
    plain = weights.load(pairs(name).folder, weights_as)
    ours, _ = adapted(name, weights_as)
    engines = [tiny.engine_of(model, n_pages=128) for model in (ours, plain)]
    requests, _ = requests_of(generator, engines[0].kv, [0, -1, 1, 1, -1])
    alone, plain_alone = [], []
    for prompt, tree in requests:
        chunk = TreeRequest(
            prompt, range(-1, len(prompt) - 1), 0, tree.pages, (), adapter=tree.adapter
        )
        engines[0].forward([chunk])
        alone.append(engines[0].forward([tree]))
        if tree.adapter < 0:
            engines[1].forward([chunk])
            plain_alone.append(engines[1].forward([tree]))
    together = engines[0].forward([tree for _, tree in requests]).split(9)
    assert all(map(torch.equal, together, alone))
    unadapted = [
        rows for rows, (_, tree) in zip(together, requests, strict=True) if tree.adapter < 0
    ]
    assert all(map(torch.equal, unadapted, plain_alone))
    assert not torch.equal(together[0], together[2])
