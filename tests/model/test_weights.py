"""Every way a model can lie on disk, and every way it can be wrong there."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime import embedded
from runtime.model import checkpoint, weights
from runtime.model.checkpoint import EMBEDDING
from runtime.model.weights import ModelError
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge

TOKENS = list(range(3, 40, 2))
WEIGHTS = "model.safetensors"
HEAD_IDS = [0, 3, 17, 44, 119]


def logits(model):
    engine = tiny.engine_of(model)
    return engine.forward([chain(TOKENS, 0, engine.kv.allocate(8))])


@pytest.fixture
def folder(pairs, tmp_path):
    """A good model folder to be spoilt."""
    return shutil.copytree(pairs("llama").folder, tmp_path / "model")


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_shards_under_an_index(name, pairs, tmp_path):
    theirs = pairs(name).theirs
    folder = tiny.save(theirs, tmp_path, shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert torch.equal(logits(weights.load(folder)), logits(pairs(name).ours))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_progress_counts_bytes_up_to_the_whole(pairs, tmp_path, dtype):
    folder, calls = tiny.save(copy.deepcopy(pairs("llama").theirs).to(dtype), tmp_path), []
    weights.load(str(folder), progress=lambda done, total: calls.append((done, total)))
    stored = sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())
    assert calls[-1] == (stored, stored)
    assert calls == sorted(calls)
    assert len(calls) == len(load_file(folder / WEIGHTS))


def test_a_tied_head_stored_again_and_old_rotary_tensors_are_ignored(pairs, folder):
    tied = pairs("llama-tied")
    tensors = load_file(tied.folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    shutil.copy(tied.folder / "config.json", folder)
    save_file(tensors, folder / WEIGHTS)
    assert_close(logits(weights.load(folder)), judge(tied.theirs, TOKENS))


def spoil(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_missing_extra_and_misshaped_tensors_are_named(folder):
    name = "model.layers.1.self_attn.k_proj.weight"
    whole = load_file(folder / WEIGHTS)
    spoil(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=rf"tensor {name} is missing; expected shape \[32, 64\]"):
        weights.load(folder)
    spoil(folder, lambda tensors: tensors.update({name: torch.zeros(64, 64)}))
    with pytest.raises(
        ModelError, match=rf"tensor {name} has shape \[64, 64\]; expected \[32, 64\]"
    ):
        weights.load(folder)
    save_file({**whole, "model.layers.2.mlp.up_proj.weight": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(
        ModelError, match=r"model.layers.2.mlp.up_proj.weight of shape \[1\] is not part of this"
    ):
        weights.load(folder)


def write_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def spoilers():
    """Ways to break a good folder, and what must be said about each."""
    config, tensors = "config.json", WEIGHTS
    index = "model.safetensors.index.json"
    return {
        "not a model folder: config.json is missing": lambda f: (f / config).unlink(),
        "config.json is not JSON": lambda f: (f / config).write_text("{"),
        "model type None is not supported; expected llama": lambda f: (f / config).write_text("[]"),
        "model type 'bert' is not supported": lambda f: write_config(f, model_type="bert"),
        "is not a llama configuration": lambda f: write_config(f, hidden_size="many"),
        "config.json: activation 'gelu'": lambda f: write_config(f, hidden_act="gelu"),
        "model.safetensors is missing": lambda f: (f / tensors).unlink(),
        "is not a safetensors file": lambda f: (f / tensors).write_bytes(b"GGUF" * 9),
        "is not an index": lambda f: (f / index).write_text("{}"),
        "other.safetensors is missing": lambda f: (f / index).write_text(
            '{"weight_map": {"a": "other.safetensors"}}'
        ),
    }


@pytest.mark.parametrize("sentence", sorted(spoilers()))
def test_spoilt_folders(folder, sentence):
    spoilers()[sentence](folder)
    with pytest.raises(ModelError, match=sentence):
        weights.load(folder)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"")
    cases = {
        "/no/such/folder": "/no/such/folder does not exist; expected a model's folder, a .gguf",
        str(tmp_path / "model.bin"): "model.bin is not a model: expected a folder or a file ending",
        "no-such-owner/no-such-model": "no-such-owner/no-such-model is no folder here and could",
        "no such owner/model": "could not be fetched from the Hugging Face hub",
    }
    for name, sentence in cases.items():
        with pytest.raises(ModelError, match=sentence):
            weights.load(name)
    monkeypatch.setattr(embedded, "_TARGET_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="was not found: the embedded target's weights come with"):
        weights.load("smollm2")


class TinyTarget:
    """Stands for the embedded target where only its token embedding is wanted."""

    def __init__(self, embedding):
        self.embedding, self.shapes = embedding, {EMBEDDING: embedding.shape}

    def n_bytes(self, name):
        return self.embedding.nbytes

    def read(self, name):
        return self.embedding


@pytest.fixture
def draft(pairs, tmp_path, monkeypatch):
    """A quantised draft with a cut head in place of the embedded one; transformers' model of it."""
    theirs, packed = copy.deepcopy(pairs("llama").theirs), {}
    state = theirs.state_dict()
    for name, tensor in state.items():
        packed[name] = tensor
        if tensor.dim() == 2 and name != EMBEDDING:
            scale = tensor.abs().amax(1) / 127
            packed[name] = (tensor / scale[:, None]).round().to(torch.int8)
            packed[f"{name}.scale"] = scale
            tensor.copy_(packed[name] * scale[:, None])
    for name in ("lm_head.weight", "lm_head.weight.scale"):
        packed[name] = packed[name][HEAD_IDS]
    target = TinyTarget(packed.pop(EMBEDDING))
    save_file({**packed, "head_ids": torch.tensor(HEAD_IDS).int()}, tmp_path / "draft.safetensors")
    config = json.loads((pairs("llama").folder / "config.json").read_text())
    (tmp_path / "draft.json").write_text(json.dumps({**config, "head_tokens": len(HEAD_IDS)}))
    monkeypatch.setattr(embedded, "DRAFT_WEIGHTS", tmp_path / "draft.safetensors")
    monkeypatch.setattr(embedded, "DRAFT_CONFIG", tmp_path / "draft.json")
    # opening the target's file is left out
    monkeypatch.setattr(checkpoint, "GgufFile", lambda path: target)
    monkeypatch.setattr(checkpoint, "locate", lambda name: None)
    return theirs


def test_embedded_draft_runs_with_its_cut_head(draft):
    model = weights.load("smollm2-draft")
    assert model.head_ids.dtype == torch.int64
    assert model.head_ids.tolist() == HEAD_IDS
    assert_close(logits(model), judge(draft, TOKENS)[:, HEAD_IDS])


def test_a_draft_that_is_not_there_is_a_sentence(draft, monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "DRAFT_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match=r"none.safetensors is missing"):
        weights.load("smollm2-draft")
