"""Every way a model can lie on disk, and every way it can be wrong there."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runtime import embedded
from runtime.model import checkpoint, weights
from runtime.model.folder import EMBEDDING, HEAD
from runtime.model.weights import ModelError
from tests.model import gguf_files, tiny
from tests.model.tiny import assert_close, chain, judge

TOKENS = list(range(3, 40, 2))
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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


def shard(folder, first):
    """The one file of a folder in two, the tensor `first` alone in the first of them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    rest = {name: tensor for name, tensor in tensors.items() if name != first}
    weight_map = {}
    for number, part in enumerate(({first: tensors[first]}, rest), start=1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [None, EMBEDDING, HEAD])
@pytest.mark.parametrize("stored", ["both differ", "both the same", "only the head"])
def test_a_tied_head_is_what_transformers_makes_of_it(folder, stored, sharded):
    """transformers ties two stored tensors only if they are equal, and either one alone."""

    def change(tensors):
        if stored == "both the same":
            tensors[HEAD] = tensors[EMBEDDING].clone()
        elif stored == "only the head":
            del tensors[EMBEDDING]

    spoil(folder, change)
    write_config(folder, tie_word_embeddings=True)
    if sharded in load_file(folder / WEIGHTS):
        shard(folder, sharded)
    ours = weights.load(folder)
    assert ours.config.tied_embedding == (stored != "both differ")
    assert_close(logits(ours), judge(AutoModelForCausalLM.from_pretrained(folder), TOKENS))


@pytest.mark.parametrize("rows", ["first", "last"])
def test_a_head_that_differs_in_one_row_is_another_head(pairs, folder, rows, monkeypatch):
    monkeypatch.setattr("runtime.model.folder._ROWS_COMPARED", 50)
    shutil.copytree(pairs("llama-tied").folder, folder, dirs_exist_ok=True)

    def change(tensors):
        tensors[HEAD] = tensors[EMBEDDING].to(torch.float64)
        tensors[HEAD][0 if rows == "first" else -1] += 1

    spoil(folder, change)
    ours = weights.load(folder)
    assert not ours.config.tied_embedding
    assert_close(logits(ours), judge(AutoModelForCausalLM.from_pretrained(folder), TOKENS))


@pytest.mark.parametrize("with_head", [False, True])
def test_names_without_their_first_part(pairs, folder, with_head):
    """As AutoModel saves a model, which has no head; a tied one needs none."""
    shutil.copytree(pairs("llama-tied").folder, folder, dirs_exist_ok=True)

    def change(tensors):
        short = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        if with_head:
            short[HEAD] = short["embed_tokens.weight"] * 2
        tensors.clear()
        tensors.update(short)

    spoil(folder, change)
    ours, theirs = weights.load(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert_close(logits(ours), judge(theirs, TOKENS))


def test_heads_that_cannot_be_made_are_sentences(pairs, folder):
    """transformers would draw one at random."""
    spoil(folder, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ModelError, match=r"tensor lm_head.weight is missing; expected shape \[120"):
        weights.load(folder)
    write_config(folder, tie_word_embeddings=True)
    spoil(folder, lambda tensors: tensors.update({HEAD: torch.zeros(3, 64)}))
    with pytest.raises(ModelError, match=r"lm_head.weight has shape \[3, 64\]; expected \[120, 64"):
        weights.load(folder)
    spoil(folder, lambda tensors: tensors.update({HEAD: torch.zeros(120, 64).int()}))
    with pytest.raises(ModelError, match=r"lm_head.weight is stored as I32; expected one of F64"):
        weights.load(folder)


@pytest.mark.parametrize("names_others", [False, True])
def test_a_single_file_counts_more_than_an_index(pairs, folder, names_others):
    """Left over from another saving, say; transformers looks for the single file first."""
    kept = shutil.copy(folder / WEIGHTS, folder.parent)
    shard(folder, HEAD)
    if names_others:
        for path in folder.glob("model-*"):
            spoil(path, lambda tensors: [tensor.zero_() for tensor in tensors.values()])
    shutil.copy(kept, folder / WEIGHTS)
    assert torch.equal(logits(weights.load(folder)), logits(pairs("llama").ours))


def test_shards_without_an_index(pairs, folder):
    shard(folder, HEAD)
    (folder / INDEX).unlink()
    assert torch.equal(logits(weights.load(folder)), logits(pairs("llama").ours))
    first = folder / "model-00001-of-00002.safetensors"
    for number in (3, 4):
        shutil.copy(first, folder / f"other-{number:05d}-of-00004.safetensors")
    with pytest.raises(ModelError, match=f"parts of several models and no {INDEX}"):
        weights.load(folder)
    first.unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ModelError,
        match=r"lacks other-00001-of-00004.safetensors, other-00002-of-00004.safetensors, and mod",
    ):
        weights.load(folder)


def test_types_that_are_no_weights_are_named(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    spoil(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.uint8)}))
    with pytest.raises(ModelError, match=f"tensor {name} is stored as U8; expected one of F64, F"):
        weights.load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_that_weights_are_stored_in(folder, dtype):
    spoil(folder, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_close(logits(weights.load(folder)), judge(theirs, TOKENS))


def spoil(path, change):
    """Change the tensors of a safetensors file, or of the single one in a folder."""
    file = path / WEIGHTS if path.is_dir() else path
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


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
    config, tensors, index = "config.json", WEIGHTS, INDEX
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


def test_a_configuration_that_cannot_be_read_is_a_sentence(folder):
    """A folder in its place, as a stand-in for another account's file, which root can read."""
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read: Is a directory"):
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("kind", ["gguf", "float32", "bfloat16", "draft"])
def test_a_model_that_runs_needs_its_file_no_more(kind, pairs, tmp_path, request):
    """Whoever writes over it changes no text, and whoever cuts it short ends nothing."""
    if kind == "draft":
        request.getfixturevalue("draft")
        path, name = tmp_path / "draft.safetensors", "smollm2-draft"
    elif kind == "gguf":
        case = gguf_files.base("llama", gguf_files.Sizes(), np.random.default_rng(0))
        case.kinds["token_embd.weight"] = gguf_files.Kind.Q8_0
        path = name = gguf_files.write(case, tmp_path / "model.gguf")
    else:
        theirs = copy.deepcopy(pairs("llama").theirs).to(getattr(torch, kind))
        name = tiny.save(theirs, tmp_path)
        path = name / "model.safetensors"
    model = weights.load(name)
    assert not model.config.tied_embedding
    want = logits(model)
    assert str(path) not in Path("/proc/self/maps").read_text()
    with path.open("r+b") as file:  # the same file: a new one would leave the old one alone
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(logits(model), want)


class TinyTarget:
    """Stands for the embedded target where only its token embedding is wanted."""

    def __init__(self, embedding):
        self.embedding, self.shapes = embedding, {EMBEDDING: embedding.shape}

    def n_bytes(self, name):
        return self.embedding.nbytes

    def stored(self, name):
        return self.embedding


@pytest.fixture
def draft(pairs, tmp_path, monkeypatch):
    """A quantised draft with a cut head in place of the embedded one; transformers' model of it."""
    theirs, packed = copy.deepcopy(pairs("llama").theirs), {}
    state = theirs.state_dict()
    for name, tensor in state.items():
        packed[name] = tensor
        if tensor.dim() == 2 and name != EMBEDDING:
            scale = (tensor.abs().amax(1) / 127).half().float()  # as it runs
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
    model = weights.load("smollm2-draft", activations="exact")
    assert model.head_ids.dtype == torch.int64
    assert model.head_ids.tolist() == HEAD_IDS
    assert_close(logits(model), judge(draft, TOKENS)[:, HEAD_IDS])


def test_a_draft_that_is_not_there_is_a_sentence(draft, monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "DRAFT_WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match=r"none.safetensors is missing"):
        weights.load("smollm2-draft")
