"""GGUF files written by the gguf package, in llama.cpp's layout, and read by us."""

import copy
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from runtime.model import weights
from runtime.model.gguf import GgufFile, Metadata
from runtime.model.gguf_header import read_header
from runtime.model.rope import LinearScaling, Llama3Scaling, YarnScaling
from runtime.model.weights import ModelError
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge

TOKENS = list(range(3, 40, 2))
PARTS = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    part = next(ours for theirs, ours in PARTS.items() if f"{theirs}." in name)
    layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
    return f"{layer}{part}.{name.rsplit('.', 1)[1]}"


def permuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Weight or bias, as llama.cpp's converter does it."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write(path, theirs, quantisation=None, metadata=(), tensors=()):
    """A transformers model as a GGUF file."""
    config = theirs.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for add in metadata:
        add(writer)
    state = dict(theirs.state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, tensor in state.items():
        values = tensor.numpy()
        for part, n_heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if architecture == "llama" and f".{part}." in name:
                values = permuted(values, n_heads)
        quantise = quantisation is not None and values.ndim == 2 and values.shape[1] % 32 == 0
        if quantise:
            values = gguf.quants.quantize(np.ascontiguousarray(values), quantisation)
        dtype = quantisation if quantise else None
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values), raw_dtype=dtype)
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(pairs, tmp_path):
    return write(tmp_path / "model.gguf", pairs("llama").theirs)


def logits(path):
    engine = tiny.engine_of(weights.load(path, activations="exact"))
    return engine.forward([chain(TOKENS, 0, engine.kv.allocate(8))])


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "llama-wide-heads", "qwen2", "qwen3", "mistral"]
)
def test_architectures(name, pairs, tmp_path):
    theirs = pairs(name).theirs
    ours = logits(write(tmp_path / "model.gguf", theirs))
    assert_close(ours, judge(theirs, TOKENS))


@pytest.mark.parametrize(
    "biases", [{"attention_bias": True}, {"attention_bias": True, "mlp_bias": True}]
)
def test_biases_of_llama_are_permuted_like_the_weights(biases, tmp_path):
    """attention_bias gives the queries, the keys, the values and the output one."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**tiny.SIZES, **biases)
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    assert_close(logits(write(tmp_path / "model.gguf", theirs)), judge(theirs, TOKENS))


def test_a_sliding_window_is_not_read_as_llama_cpp_does_not(pairs, tmp_path):
    theirs = pairs("mistral").theirs
    path = write(
        tmp_path / "model.gguf", theirs, metadata=[lambda writer: writer.add_sliding_window(7)]
    )
    assert_close(logits(path), judge(theirs, TOKENS))


def test_scale_linear_of_old_files(pairs, tmp_path):
    theirs = pairs("linear-rope").theirs
    scale = [lambda writer: writer.add_float32("llama.rope.scale_linear", 3.0)]
    path = write(tmp_path / "model.gguf", theirs, metadata=scale)
    assert_close(logits(path), judge(theirs, TOKENS))


def test_yarn_is_transformers_yarn_with_its_context(pairs, tmp_path):
    theirs = pairs("qwen3-yarn").theirs
    yarn = [
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        lambda writer: writer.add_rope_scaling_factor(4.0),
        lambda writer: writer.add_rope_scaling_orig_ctx_len(32),
        lambda writer: writer.add_context_length(32),
    ]
    path = write(tmp_path / "model.gguf", theirs, metadata=yarn)
    assert_close(logits(path), judge(theirs, TOKENS))
    assert GgufFile(path).config.max_context == 128


def test_only_the_head_size_may_turn(pairs, tmp_path):
    part = [lambda writer: writer.add_rope_dimension_count(8)]
    path = write(tmp_path / "model.gguf", pairs("llama").theirs, metadata=part)
    with pytest.raises(ModelError, match=r"rope.dimension_count is 8; expected the size of a key"):
        GgufFile(path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantised_tensors(kind, pairs, tmp_path):
    """Against transformers running the values that are left after quantisation."""
    theirs, kind = copy.deepcopy(pairs("llama").theirs), gguf.GGMLQuantizationType[kind]
    path = write(tmp_path / "model.gguf", theirs, kind)
    for weight in theirs.parameters():
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            quantised = gguf.quants.quantize(weight.detach().numpy(), kind)
            left = torch.from_numpy(gguf.quants.dequantize(quantised, kind).copy())
            assert not torch.equal(weight, left)
            weight.data.copy_(left)
    assert_close(logits(path), judge(theirs, TOKENS))


def test_what_is_written_to_a_tensor_does_not_reach_the_file(path):
    checkpoint, name = GgufFile(path), "model.embed_tokens.weight"
    for read in (checkpoint.stored, checkpoint.read):
        before = read(name).clone()
        read(name).zero_()
        assert torch.equal(read(name), before)
        assert before.any()


def test_llama3_scaling_as_divisors(pairs, tmp_path):
    theirs = pairs("llama3-rope").theirs
    frequencies = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    scaled = Llama3Scaling(8.0, 1.0, 4.0, 32).apply(frequencies, 1e4)
    divisors = (frequencies / scaled).numpy()
    path = write(tmp_path / "model.gguf", theirs, tensors=[("rope_freqs.weight", divisors)])
    assert_close(logits(path), judge(theirs, TOKENS))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", None),
        ("linear", LinearScaling(4.0)),
        ("yarn", YarnScaling(4.0, 32, pytest.approx(1.1386, abs=1e-4))),
    ],
)
def test_scaling_in_metadata(kind, expected, pairs, tmp_path):
    metadata = [
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType(kind)),
        lambda writer: writer.add_rope_scaling_factor(4.0),
        lambda writer: writer.add_rope_scaling_orig_ctx_len(32),
    ]
    path = write(tmp_path / "model.gguf", pairs("llama").theirs, metadata=metadata)
    assert GgufFile(path).config.rope_scaling == expected


def test_header_equals_what_the_gguf_package_reads(pairs, tmp_path):
    metadata = [
        lambda writer: writer.add_token_list(["a", "ü", "😀", ""]),
        lambda writer: writer.add_token_types([1, 1, 3, 1]),
        lambda writer: writer.add_token_scores([0.5, -1.0, 0.0, 3.0]),
        lambda writer: writer.add_add_bos_token(False),
        lambda writer: writer.add_custom_alignment(64),
        lambda writer: writer.add_int64("test.negative", -(1 << 40)),
    ]
    path = write(tmp_path / "model.gguf", pairs("llama").theirs, metadata=metadata)
    header, theirs = read_header(path), gguf.GGUFReader(path)
    expected = {key: f.contents() for key, f in theirs.fields.items() if "GGUF." not in key}
    assert header.metadata == expected
    assert [(t.name, t.shape, header.data_start + t.offset) for t in header.tensors] == [
        (t.name, tuple(t.shape.tolist())[::-1], t.data_offset) for t in theirs.tensors
    ]


def test_a_file_cut_anywhere_is_a_sentence(path):
    whole = path.read_bytes()
    data_start = read_header(path).data_start
    for size in [*range(0, data_start, 7), data_start + 1, len(whole) - 40]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"cut short|does not begin with GGUF"):
            weights.load(path)


def overwritten(path):
    with path.open("r+b") as file:
        file.write(file.read())
    os.utime(path, ns=(0, 0))


def replaced(path):
    Path(shutil.copy2(path, path.with_suffix(".new"))).replace(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (overwritten, "was changed while it was read; try again"),
        (replaced, "was changed while it was read; try again"),
        (lambda path: os.truncate(path, 2000), "was changed while it was read; try again"),
        (Path.unlink, "cannot be read any more: No such file"),
    ],
)
def test_a_file_that_changes_while_it_is_read(path, change, sentence):
    """Half of one model and half of another would be a wrong one."""
    checkpoint = GgufFile(path)
    checkpoint.stored("model.norm.weight")
    change(path)
    with pytest.raises(ModelError, match=sentence):
        checkpoint.stored("model.norm.weight")


def test_other_files_and_versions(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\x01\0\0\0" + whole[8:])
    with pytest.raises(ModelError, match="version 1 is not supported; expected 2 or 3"):
        weights.load(path)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        weights.load(path)


def field(key: bytes, kind: int, value: bytes) -> bytes:
    """A file of one metadata field."""
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little")
    key = len(key).to_bytes(8, "little") + key
    return head + (1).to_bytes(8, "little") + key + kind.to_bytes(4, "little") + value


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (field(b"a", 13, b""), "a field has the unknown type 13"),
        (field(b"a", 9, b"\x0d\0\0\0" + b"\x01" * 8), "an array has the unknown type 13"),
        (field(b"a", 9, b"\x0a\0\0\0" + b"\xff" * 8), "cut short"),
        (field(b"a", 9, b"\x08\0\0\0" + b"\xff" * 8), "cut short"),
        (field(b"a", 8, b"\xff" * 8), "cut short"),
        (field(b"a", 8, b"\x05" + b"\0" * 7 + b"four"), "cut short"),
        (field(b"a", 8, b"\x01" + b"\0" * 3), "cut short"),
        (field(b"a", 8, b"\x01" + b"\0" * 7 + b"\xff"), "codec can't decode"),
        (field(b"general.alignment", 4, b"\0" * 4), "alignment is 0"),
        (field(b"a", 4, b"\0" * 4), "architecture None is not supported; expected llama, qwen2"),
    ],
)
def test_hostile_headers(tmp_path, content, sentence):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        Metadata(path)


def test_missing_metadata_and_tensors_are_named(pairs, path, monkeypatch):
    number = Metadata.number
    header = read_header(path)
    del header.metadata["llama.block_count"]
    monkeypatch.setattr("runtime.model.gguf_config.read_header", lambda path: header)
    with pytest.raises(ModelError, match=r"field llama.block_count is None; expected a number"):
        weights.load(path)
    header.metadata["llama.block_count"] = 3
    assert number(Metadata(path), "block_count") == 3
    with pytest.raises(ModelError, match=r"tensor model.layers.2\.\S+ is missing"):
        weights.load(path)
