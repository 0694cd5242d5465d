"""Whole models whose weights run as they are stored, in every format and mixed ones."""

import copy
import itertools
import logging
import re
import subprocess
import sys
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from runtime import embedded
from runtime.config import WEIGHTS
from runtime.model import weights
from runtime.model.engine import TreeRequest
from runtime.model.formats import FLOATS, floats, quantised
from runtime.model.formats import KINDS as KINDS_AT_LOAD
from runtime.model.weights import ModelError
from specedge_kernels import QuantizedWeight, StoredWeight
from specedge_kernels.quantized import FORMS
from tests.kernels.quantized_cases import GGML, dequantized, random_stored
from tests.model import gguf_files, tiny
from tests.model.gguf_files import VOCAB, Sizes
from tests.model.tiny import assert_close, chain, judge

SIZES = Sizes(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, hidden_size=256, mlp=512)
TOKENS = [3, 47, 0, 11, 11, 30, 5, 22, 8]
MATRIX = re.compile(r"(token_embd|output|attn_[qkv]|attn_output|ffn_\w+)\.weight")
every_format = pytest.mark.parametrize("kind", GGML, ids=lambda kind: FORMS[kind].name)
MIXED = {
    "attn_q": 12, "attn_k": 14, "attn_v": 6, "attn_output": 39, "ffn_gate": 8, "ffn_up": 2,
    "ffn_down": 13, "token_embd": 23,
}  # fmt: skip


# Bytes of a block, and where in it a float16 number stands, of formats that are read only.
SCALES = {11: (110, 108), 18: (98, 0), 19: (50, 0), 21: (110, 0), 34: (54, 52), 35: (66, 64)}


def blocks(kind, outputs, inputs, seed):
    """Random blocks of weights of about 0.1."""
    size = dequantized(random_stored(kind, outputs, inputs, seed), kind).std()
    return random_stored(kind, outputs, inputs, seed, 0.05 * 0.1 / float(size)).numpy()


def write(path, kinds, tied=False, architecture="llama"):
    """A model with random blocks; kinds: ggml's number by part, or of all matrices."""
    random = np.random.default_rng(5)
    case = gguf_files.base(architecture, SIZES, random)
    if tied:
        del case.tensors["output.weight"]
    if architecture == "qwen2":
        for part, heads in (("attn_q", 4), ("attn_k", 2), ("attn_v", 2)):
            case.add_biases(part, 64 * heads)
    for seed, (name, values) in enumerate(case.tensors.items()):
        if values.ndim == 1:
            continue
        part = name.split(".")[-2]
        kind = kinds if isinstance(kinds, int) else kinds.get(part)
        if kind in FORMS:
            case.kinds[name] = Kind(kind)
            case.blocks[name] = blocks(kind, *values.shape, seed)
        elif kind is not None:
            case.kinds[name] = Kind(kind)
            case.blocks[name] = gguf_files.stored_as(Kind(kind), values, random)
            if kind in SCALES:
                rows = case.blocks[name].reshape(len(values), -1, SCALES[kind][0])
                scale = random.uniform(0.01, 0.02, rows.shape[:2]).astype(np.float16)
                place = SCALES[kind][1]
                rows[..., place : place + 2] = scale[..., None].view(np.uint8)
    return gguf_files.write(case, path)


def transformers_llama(path):
    """The same model by gguf's own reader and transformers."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}, tie_word_embeddings=False,
    )  # fmt: skip
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    model, state = LlamaForCausalLM(config), {}
    tensors = {t.name.removesuffix(".weight"): t for t in gguf.GGUFReader(path).tensors}
    for name in model.state_dict():
        tensor = tensors[names.get_name(name, try_suffixes=(".weight",)).removesuffix(".weight")]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()
        if ".q_proj." in name or ".k_proj." in name:
            values = values.reshape(-1, 32, 2, 256).swapaxes(1, 2).reshape(values.shape)
        state[name] = torch.from_numpy(values)
    model.load_state_dict(state)
    return model.eval()


def logits(model, tokens=TOKENS):
    engine = tiny.engine_of(model)
    return engine.forward([chain(tokens, 0, range(8))])


def op_by_op(model):
    apart = copy.copy(model)
    apart.decoder = None
    return apart


@every_format
def test_exact_products_give_the_bits_of_the_dequantised_model(kind, tmp_path):
    path = write(tmp_path / "model.gguf", kind)
    model = weights.load(path, activations="exact")
    assert isinstance(model.embedding, StoredWeight)
    assert model.layers[1].qkv.weight.kinds == (kind,)
    got = logits(model)
    assert torch.equal(got, logits(weights.load(path, "float32")))
    assert_close(got, judge(transformers_llama(path), TOKENS))
    assert torch.equal(got, logits(op_by_op(model)))


@every_format
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rounded_products_are_near_and_the_same_op_by_op(kind, tied, tmp_path):
    path = write(tmp_path / "model.gguf", kind, tied)
    rounded, exact = (weights.load(path, activations=how) for how in ("rounded", "exact"))
    got, want = logits(rounded), logits(exact)
    assert not torch.equal(got, want)
    assert (got - want).norm() < 0.1 * want.norm()
    assert torch.equal(got, logits(op_by_op(rounded)))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("activations", ["rounded", "exact"])
def test_mixed_formats(architecture, activations, tmp_path):
    """Queries, keys and values of three formats in one product; the head is float32."""
    path = write(tmp_path / "model.gguf", MIXED, architecture=architecture)
    model = weights.load(path, activations=activations)
    assert model.layers[0].qkv.weight.kinds == (12, 14, 6)
    assert model.layers[0].mlp.gate_up.weight.kinds == (8, 2)
    assert isinstance(model.head.weight, torch.Tensor)
    got = logits(model)
    assert torch.equal(got, logits(op_by_op(model)))
    if activations == "exact":
        assert torch.equal(got, logits(weights.load(path, "float32")))


def test_a_format_beside_floats_is_float16_and_told(tmp_path, caplog):
    path = write(tmp_path / "model.gguf", {"attn_q": 2, "attn_k": 1, "attn_v": 2, "ffn_up": 30})
    model = weights.load(path)
    assert model.layers[0].qkv.weight.dtype == torch.float16
    assert model.layers[0].mlp.gate_up.weight.dtype == torch.float32  # bfloat16 beside float32
    (line,) = [record.message for record in caplog.records]
    assert "converted: 4 of Q4_0 as float16, 0.4 MiB in all" in line
    assert_close(logits(model), logits(weights.load(path, "float32")), 5e-3)


@pytest.mark.parametrize("kind", [2, 8, 14, 23], ids=lambda kind: FORMS[kind].name)
@pytest.mark.parametrize("activations", ["rounded", "exact"])
def test_a_row_has_the_same_bits_in_any_batch(kind, activations, tmp_path, generator):
    model = weights.load(write(tmp_path / "model.gguf", kind, tied=True), activations=activations)
    engine = tiny.engine_of(model)
    parents = tiny.random_tree(20, generator)
    tree = torch.randint(0, VOCAB, (20,), generator=generator).tolist()
    prompt = chain(TOKENS, 0, range(8))
    engine.forward([prompt])
    other = chain(tree + TOKENS, 0, range(20, 30))
    many = engine.forward([other, TreeRequest(tree, parents, len(TOKENS), range(8), range(20))])
    for node in (0, 7, 19):
        path = tiny.path_to(parents, node)
        for depth, step in enumerate(path):
            at = len(TOKENS) + depth
            alone = engine.forward([chain([tree[step]], at, range(8))])
        assert torch.equal(alone[0], many[len(tree) + len(TOKENS) + node])


CONVERTED = {
    Kind.Q2_K: "float16", Kind.Q3_K: "Q6_K", Kind.IQ2_XXS: "float16", Kind.IQ2_XS: "float16",
    Kind.IQ2_S: "float16", Kind.IQ3_XXS: "Q6_K", Kind.IQ3_S: "Q6_K", Kind.IQ1_S: "Q6_K",
    Kind.IQ1_M: "float16", Kind.TQ1_0: "Q6_K", Kind.TQ2_0: "Q6_K", Kind.NVFP4: "float16",
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_other_formats_are_converted_and_told(kind, tmp_path, caplog):
    path = write(
        tmp_path / "model.gguf", {"attn_output": int(kind), "ffn_down": int(kind)}, tied=True
    )
    with caplog.at_level(logging.WARNING):
        model = weights.load(path, activations="exact")
    (line,) = [record.message for record in caplog.records]
    assert f"converted: 4 of {kind.name} as {CONVERTED[kind]}" in line
    assert re.search(r"0.\d MiB in all$", line)
    got, want = logits(model), logits(weights.load(path, "float32"))
    if CONVERTED[kind] == "Q6_K":
        assert model.layers[0].mlp.down.weight.kinds == (14,)
        assert torch.equal(got, want)
    else:
        assert_close(got, want, 5e-3)


@pytest.mark.parametrize("name", KINDS_AT_LOAD)
def test_floats_can_be_quantised_at_load(name, tmp_path):
    path = write(tmp_path / "model.gguf", {})
    model, full = weights.load(path, name), logits(weights.load(path))
    kind = next(number for number, form in FORMS.items() if form.name.lower() == name)
    assert model.layers[0].mlp.gate_up.weight.kinds == (kind,)
    assert model.embedding.kind == kind
    error = (logits(model) - full).norm() / full.norm()
    assert error < {"8": 0.1, "6": 0.2, "5": 0.4, "4": 0.8}[name[1]]


@pytest.mark.parametrize(("name", "instead"), [("q6_k", 8), ("q5_k", 7), ("q4_k", 6), ("q8_0", 8)])
def test_rows_that_are_no_whole_blocks_and_told(name, instead, pairs, caplog):
    """Of 64 inputs blocks of 256 become blocks of 32, and of 100 anything float16."""
    pair = pairs("llama")
    model = weights.load(pair.folder, name, activations="exact")
    assert model.layers[0].qkv.weight.kinds == (instead,)
    assert model.layers[0].mlp.down.weight.dtype == torch.float16
    want = judge(pair.theirs, TOKENS)
    assert (logits(model) - want).norm() < {8: 0.1, 7: 0.4, 6: 0.4}[instead] * want.norm()
    (line,) = [record.message for record in caplog.records]
    assert f"whose rows are no multiple of {name}'s blocks run otherwise: " in line
    assert (f"of float32 as {FORMS[instead].name}" in line) == (name != "q8_0")
    assert "2 of float32 as float16" in line


@pytest.mark.parametrize("name", KINDS_AT_LOAD)
@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 1e6])
def test_numbers_that_no_block_holds_are_refused(name, number, recwarn):
    weight = torch.ones(3, 256)
    weight[1, 200] = number
    with pytest.raises(ModelError, match=r"are not finite, or beyond .* take --weights stored"):
        quantised(weight, KINDS_AT_LOAD[name])
    weight[1, 200] = 65504
    weight[2] = 1e-40
    got = floats(quantised(weight, KINDS_AT_LOAD[name]), torch.float32)
    assert abs(got[1, 200] - 65504) < 70
    assert not got[2].any()
    assert not recwarn.list


def test_what_is_quantised_can_be_quantised_again_and_told(tmp_path, caplog):
    path = write(tmp_path / "model.gguf", 8, tied=True)
    again = weights.load(path, "q4_k")
    assert again.head.weight.kinds == (12,)
    (line,) = [record.message for record in caplog.records]
    assert "tensors were quantised again, which costs text: 15 of Q8_0 as Q4_K, " in line
    caplog.clear()
    same = weights.load(path, "q8_0")
    assert torch.equal(logits(same), logits(weights.load(path)))
    assert not caplog.records


def test_the_options_are_what_can_be_loaded():
    assert (weights.STORED, *FLOATS, *KINDS_AT_LOAD) == WEIGHTS


def test_wrong_choices_are_named(pairs):
    folder = pairs("llama").folder
    with pytest.raises(ValueError, match=r"weights: expected one of stored, float32, .*, got 'q9'"):
        weights.load(folder, "q9")
    with pytest.raises(ValueError, match="activations: expected rounded or exact, got 'exakt'"):
        weights.load(folder, activations="exakt")


PEAK = """
import sys, gguf
from transformers import AutoConfig
from runtime.model import weights
from runtime.model.formats import FLOATS, floats, quantised

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

AutoConfig.for_model("llama")
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = peak()
    model = weights.load(path)
    print(peak() - before)
    del model
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_loading_takes_little_more_than_the_weights(tmp_path):
    """At its peak: no file is mapped, and what is freed on the way goes back to the system."""
    config = AutoConfig.for_model(
        **{
            **tiny.SIZES,
            "model_type": "llama",
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
        }
    )
    folder = tiny.save(AutoModelForCausalLM.from_config(config).bfloat16(), tmp_path)
    n_bytes = [(folder / "model.safetensors").stat().st_size]
    with suppress(FileNotFoundError):
        n_bytes.append(embedded.target_path().stat().st_size)
    command = [sys.executable, "-c", PEAK, folder, *["smollm2"][: len(n_bytes) - 1]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    for peak, size in zip(map(int, done.stdout.split()), n_bytes, strict=True):
        # beside the vocabulary in a file, and code that is used for the first time
        assert peak < 1.1 * size + 16 * 2**20


def test_the_embedded_draft_runs_as_int8():
    if not embedded.DRAFT_WEIGHTS.is_file():
        pytest.skip(f"{embedded.DRAFT_WEIGHTS.name} was not built")
    model = weights.load("smollm2-draft")
    parts = [(x.qkv, x.output, x.mlp.gate_up, x.mlp.down) for x in model.layers]
    for linear in (model.head, *itertools.chain.from_iterable(parts)):
        assert isinstance(linear.weight, QuantizedWeight)
        assert set(linear.weight.kinds) == {8}
    assert isinstance(model.embedding, StoredWeight)
