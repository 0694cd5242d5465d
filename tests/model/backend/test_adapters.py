"""Adapters beside the products of transformers' modules: against the merged weights W + s B A."""

import re
from pathlib import Path

import pytest
import torch

from runtime.model.batch import NO_ADAPTER
from runtime.model.config import ModelError
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from tests.model.adapters import by_alpha, merged, random_pairs, save_folder, save_gguf
from tests.model.families.small import FAMILIES, save
from tests.model.tiny import assert_close, chain, judge, path_to, random_tokens, random_tree

ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
# what a person would adapt in each of them
PARTS = {
    "llama-3.1": ATTENTION + MLP,  # all its layers run in one call where rows have no adapter
    "gemma-3": ATTENTION + MLP,
    "phi-4-mini": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "pythia": ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
    "deepseek-v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "gpt-oss": ATTENTION,
    "gemma-3n": (*ATTENTION, *MLP, "per_layer_input_gate", "linear_left"),
}


def opened(folder: Path, **adapters: Path) -> Engine:
    return open_engine(
        str(folder), "stored", "cpu", lambda _: 256, 4, backend="transformers", adapters=adapters
    )


def step(kept, adapter):
    """A prompt in the cache, and the tree under it."""
    prompt, tree, parents, pages = kept
    return (
        TreeRequest(prompt, range(-1, len(prompt) - 1), 0, pages, (), adapter=adapter),
        TreeRequest(tree, parents, len(prompt), pages, range(len(tree)), adapter=adapter),
    )


@pytest.mark.parametrize("name", PARTS)
def test_trees_of_a_batch_are_those_of_the_merged_models(name, tmp_path, generator):
    """And each alone has the same bits, those without an adapter the bits of a server without."""
    theirs = save(FAMILIES[name], tmp_path)
    some = random_pairs(theirs, PARTS[name][:1], 3, 1, size=0.1)
    every = random_pairs(theirs, PARTS[name], 5, 2, size=0.1)
    engine = opened(
        tmp_path, some=save_folder(tmp_path / "a", some), every=save_folder(tmp_path / "b", every)
    )
    models = [theirs, *(merged(theirs, pairs, by_alpha(pairs, 8)) for pairs in (some, every))]
    kept = [
        (random_tokens(6, generator), random_tokens(9, generator), random_tree(9, generator), pages)
        for pages in (range(0, 8), range(8, 16), range(16, 24), range(24, 32))
    ]
    adapters = [0, NO_ADAPTER, 1, 1]
    steps = [step(one, adapter) for one, adapter in zip(kept, adapters, strict=True)]
    engine.forward([prompt for prompt, _ in steps])
    together = engine.forward([tree for _, tree in steps]).split(9)
    for rows, (prompt, tree, parents, _), adapter in zip(together, kept, adapters, strict=True):
        texts = [prompt + [tree[i] for i in path_to(parents, node)] for node in range(9)]
        expected = [judge(models[adapter + 1], text + [7] * 20)[len(text) - 1] for text in texts]
        assert_close(rows, torch.stack(expected))
    for rows, (prompt, tree) in zip(together, steps, strict=True):
        engine.forward([prompt])
        assert torch.equal(engine.forward([tree]), rows)
    plain = opened(tmp_path)
    plain.forward([steps[1][0]])
    assert torch.equal(plain.forward([steps[1][1]]), together[1])
    assert not torch.equal(together[0], together[2])


def test_an_adapter_of_a_model_that_sees(tmp_path, generator):
    """Its modules have the names of the whole model, old ones or new."""
    theirs = save(FAMILIES["gemma-3-4b"], tmp_path)
    pairs = random_pairs(theirs, ATTENTION, 4, 3, size=0.1)
    for place, prefix in (("old", "language_model.model."), ("new", "model.language_model.")):
        ends = {re.sub(r".*?(?=layers\.)", "", name): pair for name, pair in pairs.items()}
        folder = save_folder(tmp_path / place, {prefix + end: pair for end, pair in ends.items()})
        engine, tokens = opened(tmp_path, mine=folder), random_tokens(12, generator)
        prompt = TreeRequest(tokens, range(-1, 11), 0, range(8), range(12), adapter=0)
        expected = judge(merged(theirs, pairs, by_alpha(pairs, 8)), [*tokens, *[7] * 20])[:12]
        assert_close(engine.forward([prompt]), expected)


@pytest.mark.parametrize(
    ("name", "module", "sentence"),
    [
        ("phi-4-mini", "lm_head", "not embeddings, the output head or experts"),
        ("phi-4-mini", "model.embed_tokens", "not embeddings, the output head or experts"),
        ("phi-4-mini", "model.layers.0.self_attn.q_proj", "the model has no such matrix"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj", "the model has no such matrix"),
    ],
)
def test_what_cannot_be_adapted_is_refused(name, module, sentence, tmp_path):
    save(FAMILIES[name], tmp_path)
    pairs = {module: (torch.ones(2, 64), torch.ones(64, 2))}
    with pytest.raises(ModelError, match=sentence):
        opened(tmp_path, mine=save_folder(tmp_path / "a", pairs))


def test_files_of_llama_cpp_are_for_our_own_code(tmp_path):
    save(FAMILIES["phi-4-mini"], tmp_path)
    pairs = {"model.layers.0.self_attn.o_proj": (torch.ones(2, 64), torch.ones(64, 2))}
    path = save_gguf(tmp_path / "a.gguf", pairs, 16)
    with pytest.raises(ModelError, match="give the folder of peft's"):
        opened(tmp_path, mine=path)


def test_a_module_that_changes_the_order_of_rows_is_noticed(tmp_path, monkeypatch, generator):
    """An adapter would be added to other rows than those that ask for it."""
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    theirs = save(FAMILIES["phi-4-mini"], tmp_path)
    honest = Phi3MLP.forward
    monkeypatch.setattr(Phi3MLP, "forward", lambda self, x: honest(self, x.flip(1)).flip(1))
    assert (
        opened(tmp_path).forward([chain(random_tokens(3, generator), 0, range(8))]).isfinite().all()
    )
    folder = save_folder(tmp_path / "a", random_pairs(theirs, ("down_proj",), 4, 1))
    with pytest.raises(ModelError, match=r"gets other logits|in their last bits"):
        opened(tmp_path, mine=folder)
