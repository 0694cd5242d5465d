"""Model files that lie about sizes: one sentence each, before anything of that size is made."""

import json
import shutil
import struct

import pytest

from runtime.model import weights
from runtime.model.tokenizer import _generation_stop_ids
from runtime.model.weights import ModelError
from tests.fuzz.targets import CORPUS

U32, F32, U64 = "<I", "<f", "<Q"
GGUF = (CORPUS / "gguf/tiny.gguf").read_bytes()


def at_field(key: bytes) -> int:
    """Where the value of a metadata field begins."""
    return GGUF.index(key + struct.pack(U32, 4 if b"rope" not in key else 6)) + len(key) + 4


def at_tensor(name: bytes) -> int:
    """Where a tensor's number of dimensions stands."""
    return GGUF.index(struct.pack(U64, len(name)) + name) + 8 + len(name)


def spoilt(at: int, layout: str, value: float) -> bytes:
    data = bytearray(GGUF)
    struct.pack_into(layout, data, at, value)
    return bytes(data)


def load_gguf(path, data):
    path.write_bytes(data)
    return weights.load(path)


def test_the_kept_file_is_good(tmp_path):
    load_gguf(tmp_path / "model.gguf", GGUF)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (b"llama.block_count", 2**32 - 1, r"n_layers is 4294967295; expected 1 \.\. 1024"),
        (b"llama.block_count", 0, r"field llama.block_count is 0; expected at least 1"),
        (
            b"llama.context_length",
            2**32 - 1,
            r"context_length is 4294967295; expected 1 \.\. 16777216",
        ),
        (b"llama.attention.head_count", 0, r"llama.attention.head_count is 0; expected at least 1"),
        (b"llama.rope.freq_base", float("nan"), "rope_theta is nan; expected a number above 1"),
        (b"llama.rope.scaling.factor", -2.0, "factor is -2.0; expected a number above 0"),
        (b"llama.attention.key_length", 6, "value_length is 4; expected the size of a key, 6"),
    ],
)
def test_numbers_of_a_gguf_file(tmp_path, key, value, sentence):
    data = spoilt(at_field(key), F32 if isinstance(value, float) else U32, value)
    with pytest.raises(ModelError, match=sentence):
        load_gguf(tmp_path / "model.gguf", data)


def test_tensors_of_a_gguf_file_lie_in_places_of_their_own(tmp_path):
    norm = at_tensor(b"output_norm.weight")
    # one dimension: then its size, the type and the offset
    overlapping = spoilt(norm + 16, U64, 0)
    with pytest.raises(ModelError, match=r"tensor \S+ overlaps another one"):
        load_gguf(tmp_path / "model.gguf", overlapping)
    with pytest.raises(ModelError, match=r"cut short in tensor output_norm.weight"):
        load_gguf(tmp_path / "model.gguf", spoilt(norm + 4, U64, 2**60))
    without_dimensions = GGUF[:norm] + bytes(4) + GGUF[norm + 12 :] + bytes(8)
    with pytest.raises(ModelError, match=r"output_norm.weight has no dimensions"):
        load_gguf(tmp_path / "model.gguf", without_dimensions)


def test_divisors_of_another_head_size(tmp_path):
    data = bytearray((CORPUS / "gguf/divisors.gguf").read_bytes())
    name = b"rope_freqs.weight"
    struct.pack_into(U64, data, data.index(name) + len(name) + 4, 1)
    with pytest.raises(ModelError, match=r"rope_freqs.weight has shape \[1\]; expected \[2\]"):
        load_gguf(tmp_path / "model.gguf", bytes(data))


@pytest.fixture
def folder(tmp_path):
    shutil.copy(CORPUS / "safetensors/tiny.safetensors", tmp_path / "model.safetensors")
    shutil.copy(CORPUS / "config/tiny.json", tmp_path / "config.json")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000; expected 1 \.\. 1024"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers is '1'; expected"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000; expected"),
        ({"num_attention_heads": 0, "head_dim": None}, "is not a llama configuration|n_heads is 0"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": None}}, "factor"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
)
def test_numbers_of_a_configuration(folder, changes, sentence):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ModelError, match=sentence):
        weights.load(folder)


def test_json_that_is_too_deep(folder):
    for name in ("model.safetensors.index.json", "config.json"):
        (folder / name).write_text("[" * 200_000)
        with pytest.raises(ModelError, match=f"{name} is not JSON"):
            weights.load(folder)


def test_an_index_stays_in_its_folder(folder):
    index = folder / "model.safetensors.index.json"
    for name in ("../model.safetensors", "/etc/hostname", "sub/model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelError, match="names files outside of its folder"):
            weights.load(folder)
    index.write_text('{"weight_map": {"a": 5, "b": "c"}}')
    with pytest.raises(ModelError, match="is not an index"):
        weights.load(folder)


@pytest.mark.parametrize(
    ("text", "ids"),
    [('{"eos_token_id": [[1], 2]}', {2}), ('{"eos_token_id": {}}', set()), ("[" * 10**5, set())],
)
def test_stop_ids_are_numbers(tmp_path, text, ids):
    (tmp_path / "generation_config.json").write_text(text)
    assert _generation_stop_ids(tmp_path) == ids
