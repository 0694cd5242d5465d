"""Files of adapters: what peft and llama.cpp mean by them, and sentences for all others."""

import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.model import weights
from runtime.model.adapted import adapt
from runtime.model.adapter import base_of, load_adapter
from runtime.model.config import ModelError
from runtime.model.weights import expected_shapes
from tests.model import gguf_files, tiny
from tests.model.adapters import EVERYTHING, by_alpha, random_pairs, save_folder, save_gguf
from tests.model.llama_cpp import LlamaCpp

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def llama(pairs):
    """A small llama, and pairs for all of its products, of rank 4."""
    pair = pairs("llama")
    return base_of(pair.ours.config), random_pairs(pair.theirs, EVERYTHING, 4, seed=3)


def assert_added(adapter, pairs, scale) -> None:
    assert adapter.added.keys() == pairs.keys()
    for name, (a, b) in pairs.items():
        added = adapter.added[name]
        torch.testing.assert_close(added.scale * (added.b @ added.a), scale[name] * (b @ a))


def test_factors_are_those_of_the_first_pattern_that_ends_the_name(llama, tmp_path):
    base, pairs = llama
    for layer in (0, 1):
        a, b = pairs[name := f"model.layers.{layer}.mlp.up_proj"]
        pairs[name] = torch.cat((a, -a / 2)), torch.cat((b, b / 3), 1)
    fields = {
        "r": 4,
        "rank_pattern": {"up_proj": 8},
        "alpha_pattern": {
            "layers.1.self_attn.q_proj": 2,
            "q_proj": 3.5,
            r".*\.1\.mlp\..*": 1,
            "down_proj": 6,
            "proj": 100,  # no name ends with this part
        },
        "target_modules": "all-linear",
    }
    scale = by_alpha(pairs, 8)
    scale["model.layers.0.self_attn.q_proj"] = 3.5 / 4
    scale["model.layers.1.self_attn.q_proj"] = 2 / 4
    scale["model.layers.0.mlp.down_proj"] = 6 / 4
    for part in ("gate", "up", "down"):
        scale[f"model.layers.1.mlp.{part}_proj"] = 1 / (8 if part == "up" else 4)
    folder = save_folder(tmp_path, pairs, **fields)
    assert_added(load_adapter("a", folder, base), pairs, scale)


WHOLE = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("mlp.up_proj", "self_attn.v_proj")]


@pytest.mark.parametrize(
    "targets", [r".*layers\.\d+\.(mlp|self_attn)\..*", ["mlp.up_proj", "v_proj"], WHOLE]
)
def test_target_modules_are_a_pattern_or_names_or_their_ends(llama, tmp_path, targets):
    base, pairs = llama
    some = {name: pair for name, pair in pairs.items() if name.endswith(("up_proj", "v_proj"))}
    folder = save_folder(tmp_path, some, target_modules=targets, fan_in_fan_out=True)
    assert_added(load_adapter("a", folder, base), some, by_alpha(some, 8))


LAYERED = {"target_modules": ["q_proj", "up_proj"]}


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"layers_to_transform": 1}, [1]),
        ({"layers_to_transform": 0}, [0]),
        ({"layers_to_transform": [1, 7]}, [1]),
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, [1]),
        ({"layers_to_transform": [1], "layers_pattern": ["h", "l.*s"]}, [1]),
        ({"layers_to_transform": [1], "layers_pattern": "model.layers"}, [1]),
        ({"layers_to_transform": []}, [0, 1]),
        ({"layers_to_transform": None, "layers_pattern": "h"}, [0, 1]),
        ({"layers_to_transform": [0, 1], "layers_pattern": "h"}, []),
        ({"layers_to_transform": [2]}, []),
    ],
)
def test_only_the_layers_that_are_named_are_adapted(llama, tmp_path, fields, layers):
    """As peft counts them: a file that has others is not what its configuration says."""
    base, pairs = llama
    for layer in (0, 1):
        some = {
            name: pair
            for name, pair in pairs.items()
            if f".{layer}." in name and name.endswith(("q_proj", "up_proj"))
        }
        folder = save_folder(tmp_path / str(layer), some, **{**LAYERED, **fields})
        if layer in layers:
            assert_added(load_adapter("a", folder, base), some, by_alpha(some, 8))
        else:
            with pytest.raises(ModelError, match=rf"does not name model\.layers\.{layer}\."):
                load_adapter("a", folder, base)


def test_patterns_that_are_slow_together_are_refused(llama, tmp_path):
    """Each is quick enough; hundreds of them for each module are not."""
    base, pairs = llama
    slow = {rf"(.|.){{16}}[{chr(place)}!]+": 1 for place in range(0x4E00, 0x4F00)}
    folder = save_folder(tmp_path, pairs, alpha_pattern=slow)
    with pytest.raises(ModelError, match=r"takes? too long"):
        load_adapter("a", folder, base)


def test_an_adapter_of_a_model_without_its_head(llama, tmp_path):
    base, pairs = llama
    bare = {name.removeprefix("model."): pair for name, pair in pairs.items()}
    assert_added(load_adapter("a", save_folder(tmp_path, bare), base), pairs, by_alpha(pairs, 8))


@pytest.mark.parametrize(("alpha", "factor"), [(16.0, 4.0), (0.0, 1.0), (None, 1.0)])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_gguf_adapters_mean_what_llama_cpp_makes_of_them(
    llama, tmp_path, alpha, factor, architecture
):
    base, pairs = llama
    metadata = {"adapter.lora.alpha": alpha}
    path = save_gguf(tmp_path / "a.gguf", pairs, base.head_dim, architecture, **metadata)
    assert_added(load_adapter("a", path, base), pairs, dict.fromkeys(pairs, factor))


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_llama_cpp_answers_the_same_with_a_gguf_adapter(tmp_path, architecture):
    case = gguf_files.base(architecture, gguf_files.Sizes(), np.random.default_rng(1))
    path = gguf_files.write(case, tmp_path / "model.gguf")
    model = weights.load(path, activations="exact")
    shapes = {name.removesuffix(".weight"): s for name, s in expected_shapes(model.config).items()}
    adapted = {name: shape for name, shape in shapes.items() if name.endswith(EVERYTHING)}
    files = {}
    for name, alpha in (("factor", 10.0), ("none", 0.0)):
        pairs = {
            module: (torch.randn(4, inputs) / 5, torch.randn(outputs, 4) / 5)
            for module, (outputs, inputs) in adapted.items()
        }
        metadata = {"adapter.lora.alpha": alpha}
        file = tmp_path / f"{name}.gguf"
        files[name] = save_gguf(file, pairs, model.config.head_dim, architecture, **metadata)
    adapt(model, [load_adapter(name, file, base_of(model.config)) for name, file in files.items()])
    engine, tokens, theirs = tiny.engine_of(model), [(7 * i) % 48 for i in range(20)], LlamaCpp()
    for index, file in enumerate([None, *files.values()], -1):
        prompt = tiny.chain(tokens, 0, engine.kv.allocate(5))
        ours = engine.forward([replace(prompt, adapter=index)])
        tiny.assert_close(ours, torch.tensor(theirs.logits(path, tokens, file)))
    theirs.close()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"peft_type": "IA3"}, "of kind 'IA3'; expected 'LORA'"),
        ({"use_dora": True}, "use_dora asks for magnitudes"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save asks for whole modules"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "stands on other weights"),
        ({"target_modules": ["q_proj"]}, "does not name model.layers.0.mlp"),
        ({"target_modules": "all-linear", "r": 5}, "the rank 5, and its matrix has shape [4, "),
        ({"rank_pattern": {"q_proj": True}}, "the rank True"),
        ({"rank_pattern": ["q_proj"]}, "expected names and numbers"),
        ({"alpha_pattern": {"q_proj": "8"}}, "the alpha '8'; expected a number"),
        ({"lora_alpha": 10**400}, "; expected a number"),
        ({"alpha_pattern": {"(": 1}}, "missing )"),
        ({"alpha_pattern": {"((.|.)*|x)*y": 1}}, "takes too long"),
        ({"alpha_pattern": {"a" * 600: 1}}, "has more than 512 characters"),
        ({"alpha_pattern": {"((.{50}){50}){50}": 1}}, "repeats a part more than 1000 times"),
        ({"target_modules": ".*{99999999999999999999}"}, "repeats a part more than 1000 times"),
        ({"target_modules": [1]}, "expected a list of names"),
        ({"exclude_modules": ["up_proj"]}, "does not name model.layers.0.mlp.up_proj"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform has no list of layers' numbers"),
        ({"layers_to_transform": [-1]}, "layers_to_transform has no list of layers' numbers"),
        ({"layers_to_transform": {}, "layers_pattern": 3}, "layers_pattern has no list of names"),
    ],
)
def test_configurations_that_are_refused(llama, tmp_path, fields, sentence):
    base, pairs = llama
    folder = save_folder(tmp_path, pairs, **fields)
    with pytest.raises(ModelError) as refused:
        load_adapter("mine", folder, base)
    assert str(refused.value).startswith("adapter mine: ")
    assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "a.gguf"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_rather_than_waited_for(llama, tmp_path, name):
    base, pairs = llama
    folder = save_folder(tmp_path, pairs)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=r"it is no file|a.gguf is a pipe"):
        load_adapter("a", folder / name if name == "a.gguf" else folder, base)


def test_a_sentence_is_no_longer_than_a_person_reads(llama, tmp_path):
    base, pairs = llama
    folder = save_folder(tmp_path, pairs, peft_type="X" * 100_000)
    with pytest.raises(ModelError) as refused:
        load_adapter("a", folder, base)
    assert len(str(refused.value)) < 1100


def test_one_module_under_two_names_is_refused(llama, tmp_path):
    base, pairs = llama
    module, pair = next(iter(pairs.items()))
    both = {module: pair, module.removeprefix("model."): (pair[0] + 1, pair[1] + 1)}
    with pytest.raises(ModelError, match=r"is adapted twice"):
        load_adapter("a", save_folder(tmp_path, both), base)


def renamed(old: str, new: str):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (renamed(f"{Q0}.lora_A.weight", f"{Q0}.lora_X.weight"), "no counterpart"),
        (lambda t: t.pop(f"{Q0}.lora_B.weight"), "no counterpart"),
        (lambda t: t.update({f"{Q0}.lora_magnitude_vector": torch.ones(1)}), "is none that a LoRA"),
        (
            lambda t: t.update({"x.lora_A.weight": torch.ones(1)}),
            "x.lora_A.weight is none|counterpart",
        ),
        (lambda t: t[f"{Q0}.lora_A.weight"].fill_(torch.nan), "not finite"),
        (lambda t: t[f"{Q0}.lora_B.weight"].fill_(3e38), "not finite"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 5)}), "expected [rank, 64]"),
        (lambda t: t.update({f"{Q0}.lora_B.weight": torch.ones(64)}), "expected [rank, 64]"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(0, 64)}), "the rank 4, and"),
        (lambda t: t.clear(), "it has no tensors"),
        *(
            (
                lambda t, to=to: [
                    t.update({f"base_model.model.{to}.lora_{h}.weight": torch.ones(4, 4)})
                    for h in "AB"
                ],
                sentence,
            )
            for to, sentence in (
                ("model.layers.2.self_attn.q_proj", "the model has no such matrix"),
                ("model.layers.\u0660.self_attn.q_proj", "the model has no such matrix"),
                ("lm_head", "only the products of attention"),
                ("model.embed_tokens", "only the products of attention"),
            )
        ),
    ],
)
def test_tensors_that_are_refused(llama, tmp_path, spoil, sentence):
    base, pairs = llama
    folder = save_folder(tmp_path, pairs, target_modules=".*", lora_alpha=1e3)
    tensors = load_file(folder / WEIGHTS)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ModelError) as refused:
        load_adapter("mine", folder, base)
    assert any(part in str(refused.value) for part in sentence.split("|"))


def test_places_that_are_no_adapters(llama, tmp_path):
    base, pairs = llama
    folder = save_folder(tmp_path / "a", pairs)
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    (cut / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-3])
    listed = Path(shutil.copytree(folder, tmp_path / "list"))
    (listed / CONFIG).write_text(json.dumps([1]))
    whole = save_gguf(tmp_path / "model.gguf", pairs, 16, **{"general.type": "model"})
    unknown = save_gguf(tmp_path / "unknown.gguf", pairs, 16, "gpt2")
    wide = save_folder(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (
        torch.ones(300, 64), torch.ones(64, 300),
    )})  # fmt: skip
    sentences = {
        tmp_path / "nowhere": "does not exist; expected a folder",
        Path("/dev/null"): "/dev/null is a device; expected a folder",
        pickled: "is pickled, and pickles can run programs",
        folder / WEIGHTS: "is no .gguf file; of an adapter of peft's, give the folder",
        cut: "is not a safetensors file",
        listed: "is of an adapter of kind None",
        tmp_path: "adapter_config.json cannot be read",
        whole: "general.type is 'model'; expected adapter",
        unknown: "general.architecture is 'gpt2'",
        wide: "has rank 300; expected 1 to 256",
    }
    for path, sentence in sentences.items():
        with pytest.raises(ModelError) as refused:
            load_adapter("mine", path, base)
        assert sentence in str(refused.value)
