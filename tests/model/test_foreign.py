"""Models in formats that are not read: each is named, with what to do instead."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.model import weights
from runtime.model.backend.load import load as load_transformers
from runtime.model.foreign import listed
from runtime.model.gguf_config import header_of
from runtime.model.safetensors_file import tensors_of
from runtime.model.tokenizer import Tokenizer
from runtime.model.weights import ModelError
from tests.model.test_tokenizer import byte_level

WEIGHTS = "model.safetensors"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14483464192\n"


@pytest.fixture
def folder(pairs, tmp_path):
    """A good model folder to be spoilt."""
    return shutil.copytree(pairs("llama").folder, tmp_path / "model")


def refusal(path):
    with pytest.raises(ModelError) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        # as the savers of each method write them, shortened
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True, "llm_int8_threshold": 6.0}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
        ({"quant_method": "hqq", "quant_config": {}}, "HQQ"),
        ({"quant_method": "eetq"}, "EETQ"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto"),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "AQLM"),
        ({"quant_method": "exl2", "bits": 4.0}, "EXL2"),
        ({"bits": 4, "group_size": 128}, "an unnamed method"),
        (["odd"], "an unnamed method"),
    ],
)
def test_quantised_checkpoints_are_named(folder, fields, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fields}))
    assert refusal(folder).endswith(
        f"config.json: the weights are quantised ({name}), which is not supported; take the "
        "model's unquantised folder, or a GGUF file of it"
    )


def test_mlx_names_its_quantisation_otherwise(folder):
    config = json.loads((folder / "config.json").read_text())
    both = {"quantization": {"bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}}
    (folder / "config.json").write_text(json.dumps({**config, **both}))
    assert "quantised (MLX)" in refusal(folder)
    older = {"compression_config": {"quant_method": "aqlm"}}
    (folder / "config.json").write_text(json.dumps({**config, **older}))
    assert "quantised (AQLM)" in refusal(folder)
    unquantised = {"quantization_config": None, "quantization": {}}
    (folder / "config.json").write_text(json.dumps({**config, **unquantised}))
    weights.load(folder)


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_inv", "FP8"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("scales", "MLX"),
    ],
)
def test_quantised_tensors_without_a_word_in_the_configuration(folder, suffix, name):
    tensors = load_file(folder / WEIGHTS)
    tensors[f"model.layers.0.self_attn.q_proj.{suffix}"] = torch.ones(2)
    save_file(tensors, folder / WEIGHTS)
    assert f"quantised ({name})" in refusal(folder)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin: pickled weights, which are never read"),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            "pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin: pickled weights",
        ),
        (["model.pth"], "model.pth: pickled weights"),
        (["weights.npz"], "weights.npz: NumPy arrays; convert the model to safetensors or GGUF"),
        (["model.onnx", "model.onnx_data"], "model.onnx: an ONNX graph; take the model that it"),
        (["onnx/model.onnx"], "onnx: an ONNX graph"),
        (["tf_model.h5"], "tf_model.h5: TensorFlow weights"),
        (["flax_model.msgpack"], "flax_model.msgpack: Flax weights"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "adapter_config.json: an adapter, not a whole model; give its base model",
        ),
        (["model.fp16.safetensors"], "model.fp16.safetensors: weights, which belong into a folder"),
        (["model_index.json"], "model_index.json: a diffusers pipeline; expected a language mod"),
        (
            ["consolidated.safetensors", "params.json"],
            "consolidated.safetensors: weights under their maker's own names; take the Hugging",
        ),
    ],
)
@pytest.mark.parametrize("configured", [True, False])
def test_folders_without_safetensors_say_what_they_hold(folder, files, sentence, configured):
    (folder / WEIGHTS).unlink()
    if not configured:
        (folder / "config.json").unlink()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    missing = "model.safetensors is missing" if configured else "config.json is missing"
    assert f"{missing}; the folder holds {sentence}" in refusal(folder)


def test_an_empty_folder_is_a_sentence(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is not a model folder: config.json is missing"


@pytest.mark.parametrize(
    ("name", "first_bytes", "sentence"),
    [
        (
            "model.safetensors",
            b"",
            "weights, which belong into a folder, as model.safetensors besi",
        ),
        ("model.bin", b"PK\3\4", "pickled weights, which are never read because they can run cod"),
        ("consolidated.00.pth", b"PK\3\4", "weights under their maker's own names"),
        ("model.npz", b"PK\3\4", "NumPy arrays"),
        ("model.onnx", b"\x08\x07", "an ONNX graph"),
        ("ggml-model-q4_0.bin", b"lmgg", "a GGML file, the format before GGUF; convert the model"),
        ("ggml-model-q4_0.bin", b"tjgg\3\0\0\0", "a GGML file, the format before GGUF"),
        ("model.gguf", LFS_POINTER, "a Git LFS pointer in place of the file; fetch the file its"),
        ("model.safetensors", LFS_POINTER, "a Git LFS pointer in place of the file"),
    ],
)
def test_files_that_are_no_model_say_what_they_are(tmp_path, name, first_bytes, sentence):
    path = tmp_path / name
    path.write_bytes(first_bytes)
    expected = f"{path} is not a model: expected a folder or a file ending in .gguf, not {sentence}"
    assert refusal(path).startswith(expected)
    with pytest.raises(ModelError, match="is not a model"):
        Tokenizer.load(path)


def test_a_pointer_in_place_of_the_weights(folder):
    (folder / WEIGHTS).write_bytes(LFS_POINTER)
    assert "is not a safetensors file: a Git LFS pointer in place of the file" in refusal(folder)
    (folder / WEIGHTS).write_bytes(b"short")
    assert "is not a safetensors file: " in refusal(folder)
    assert "Git LFS" not in refusal(folder)


@pytest.mark.parametrize("read", [header_of, tensors_of])
def test_a_system_that_does_not_open_a_file_says_nothing_of_what_is_in_it(tmp_path, read):
    """As where too many files are open, or memory is short."""
    with pytest.raises(ModelError, match=f"^{tmp_path} cannot be read: Is a directory$"):
        read(tmp_path)


NOT_FETCHED = [
    ("config.json", lambda path: weights.load(path.parent)),
    (WEIGHTS, lambda path: weights.load(path.parent)),
    ("tokenizer.json", lambda path: Tokenizer.load(path.parent)),
    ("tokenizer_config.json", lambda path: Tokenizer.load(path.parent)),
    ("chat_template.jinja", lambda path: Tokenizer.load(path.parent)),
]


@pytest.mark.parametrize(("name", "load"), NOT_FETCHED, ids=[name for name, _ in NOT_FETCHED])
def test_what_was_not_fetched_is_told(folder, name, load):
    """Cloned without Git LFS, or copied out of the hub's cache without what its links lead to."""
    byte_level().save_pretrained(folder)
    (folder / name).write_bytes(LFS_POINTER)
    with pytest.raises(ModelError, match=f"{name} is (not .*: )?a Git LFS pointer in place of"):
        load(folder / name)
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/4d7a")
    sentence = f"{name} is a link to ../../blobs/4d7a, which does not exist"
    with pytest.raises(ModelError, match=sentence):
        load(folder / name)


def test_parts_that_were_not_fetched_are_told(folder):
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (folder / "model-00001-of-00001.safetensors").symlink_to("gone")
    assert "is a link to gone, which does not exist; model.safetensors.index" in refusal(folder)
    index.write_bytes(LFS_POINTER)
    assert "index.json is not JSON: a Git LFS pointer in place of the file" in refusal(folder)


def test_a_configuration_of_what_nobody_knows(folder):
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "hidden_act": "weird"}))
    with pytest.raises(ModelError, match=r"configuration cannot be run: .*'weird'"):
        load_transformers(folder, "stored", torch.device("cpu"))
    del fields["model_type"]
    config.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"cannot be run: config\.json has no model_type"):
        load_transformers(folder, "stored", torch.device("cpu"))


def test_long_lists_are_cut():
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcdef") == "a, b, c, d, e, f"
    assert listed("abcdefgh") == "a, b, c, d, e, f and 2 more"
