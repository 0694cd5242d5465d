"""Whole models in quantised folders, against transformers with the values of their weights."""

import copy
import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.model import weights
from runtime.model.checkpoint import open_checkpoint
from runtime.model.folder import EMBEDDING, HEAD
from runtime.model.weights import ModelError
from specedge_kernels import QuantizedWeight
from tests.model import layout_cases as cases
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge

TOKENS = [3, 47, 0, 11, 11, 30, 5, 22, 8]
WEIGHTS = "model.safetensors"
CT = {"quant_method": "compressed-tensors"}
WAYS = {
    "gptq": ({"quant_method": "gptq"}, cases.gptq, "Q4_0"),
    "gptq-asymmetric": (
        {"quant_method": "gptq"}, lambda w: cases.gptq(w, symmetric=False, group=64), "Q5_0",
    ),
    "gptq-8": ({"quant_method": "gptq"}, lambda w: cases.gptq(w, 8), "Q8_0"),
    "gptq-act-order": (
        {"quant_method": "gptq", "desc_act": True},
        lambda w: cases.gptq(w, act_order=True), "GPTQ as float16",
    ),
    "awq": ({"quant_method": "awq"}, cases.awq, "Q5_0"),
    "packed-int4": (CT, cases.pack_quantized, "Q4_0"),
    "packed-int8": (CT, lambda w: cases.pack_quantized(w, 8, group=-1), "Q8_0"),
    "int8": (CT, cases.int_quantized, "Q8_0"),
    "float8": (CT, lambda w: cases.float8(w, shape="row", name=".weight_scale"), "FP8_32"),
    "fp8": ({"quant_method": "fp8"}, cases.float8, "FP8_32"),
    "fp8-in-odd-blocks": (
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        lambda w: cases.float8(w, (48, 48)), "FP8 as float16",
    ),
    "fp8-powers-in-odd-blocks": (
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        lambda w: cases.float8(w, (48, 48), powers=True), "FP8 as bfloat16",
    ),
    "mxfp4": (CT, lambda w: cases.float4(w, 32), "MXFP4"),
    "nvfp4": (CT, lambda w: cases.float4(w, 16), "compressed-tensors as float16"),
}  # fmt: skip
KINDS = {"Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "MXFP4": 39, "FP8_32": 257}


@pytest.fixture(scope="module")
def plain():
    """A model with 192 inputs, which is no multiple of the blocks of FP8."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        **{
            **tiny.SIZES,
            "model_type": "qwen2",
            "hidden_size": 192,
            "intermediate_size": 320,
            "initializer_range": 0.1,
        },
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()


def quantised(model, folder, fields, quantise, name=r"model.layers.*proj.weight"):
    """Saved with the weights of that name quantised; the model with what these stand for."""
    theirs, tensors = copy.deepcopy(model), {}
    state = theirs.state_dict()
    for key, tensor in state.items():
        if not re.fullmatch(name, key):
            tensors[key] = tensor
            continue
        case = quantise(tensor.double().numpy())
        stem = key.removesuffix(".weight")
        tensors |= {stem + end: part.contiguous() for end, part in case.tensors.items()}
        state[key] = torch.from_numpy(case.values).float()
    theirs.load_state_dict(state)
    folder.mkdir(exist_ok=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fields}))
    save_file(tensors, folder / WEIGHTS)
    return theirs


def logits(model):
    return tiny.engine_of(model).forward([chain(TOKENS, 0, range(8))])


def weight_bytes(model):
    """Of a model as it runs, its embedding and the matrices of its products."""
    products = [model.head]
    for layer in model.layers:
        products += [layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down]
    packed = [linear.weight for linear in products]
    tensors = [w.packed if isinstance(w, QuantizedWeight) else w for w in packed]
    return sum(tensor.nbytes for tensor in [model.embedding, *tensors])


@pytest.mark.parametrize("way", WAYS)
def test_a_model_in_each_layout(way, plain, tmp_path, caplog):
    fields, quantise, runs_as = WAYS[way]
    theirs = quantised(plain, tmp_path, fields, quantise)
    calls = []
    with caplog.at_level(logging.WARNING):
        ours = weights.load(
            tmp_path, progress=lambda *call: calls.append(call), activations="exact"
        )
    want = judge(theirs, TOKENS)
    if runs_as in KINDS:
        assert ours.layers[1].mlp.gate_up.weight.kinds == (KINDS[runs_as],)
        assert not caplog.records
        assert_close(logits(ours), want)
        rounded = logits(weights.load(tmp_path))
        assert (rounded - want).norm() < 0.1 * want.norm()
    else:
        (line,) = [record.message for record in caplog.records]
        assert "that no format here holds are floats: 14 of " + runs_as in line
        assert re.search(r"\d.\d MiB in all", line)
        assert_close(logits(ours), want, 2e-3)
    running = sum(
        map(open_checkpoint(tmp_path).running_bytes, weights.expected_shapes(ours.config))
    )
    held = weight_bytes(ours)
    assert held * 0.98 < running < held * (1.35 if runs_as == "Q4_0" else 1.02)
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / WEIGHTS).values())
    assert calls[-1] == (stored, stored)


@pytest.mark.parametrize("shape", ["block", "row", "tensor"])
def test_float8_keeps_its_eight_bits_on_a_gpu(shape, plain, tmp_path, caplog):
    """Loaded for a device without memory: what is sent to it is what a GPU gets."""
    fields = {"quant_method": "fp8"}
    theirs = quantised(plain, tmp_path, fields, lambda w: cases.float8(w, shape=shape))
    ours = weights.load(tmp_path, device="meta")
    assert not caplog.records
    for layer in ours.layers:
        for linear in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down):
            weight = linear.weight
            assert (weight.kinds, weight.packed.device.type) == ((257,), "meta")
            n_weights = weight.out_features * weight.in_features
            assert weight.packed.nbytes == n_weights * 9 // 8
    assert_close(logits(weights.load(tmp_path)), judge(theirs, TOKENS))


def test_floats_for_all_of_a_quantised_folder(plain, tmp_path):
    theirs = quantised(plain, tmp_path, *WAYS["awq"][:2])
    assert_close(logits(weights.load(tmp_path, "float32")), judge(theirs, TOKENS))
    again = weights.load(tmp_path, "q8_0", activations="exact")
    assert again.layers[0].mlp.down.weight.kinds == (8,)
    want = judge(theirs, TOKENS)
    assert (logits(again) - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_head(tied, plain, tmp_path):
    """A head of its own is none that is tied, whatever the configuration says."""
    theirs = quantised(plain, tmp_path, *WAYS["gptq"][:2], name=r"lm_head.weight")
    config = json.loads((tmp_path / "config.json").read_text())
    config["tie_word_embeddings"] = tied
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = weights.load(tmp_path, activations="exact")
    assert isinstance(ours.head.weight, QuantizedWeight)
    assert_close(logits(ours), judge(theirs, TOKENS))


@pytest.mark.parametrize("number", [0.0, 0.5])
def test_biases_that_autogptq_adds(number, plain, tmp_path):
    """Zeros for every product; others would be another model."""
    theirs = quantised(plain, tmp_path, *WAYS["gptq"][:2])
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.1.mlp.down_proj.bias"
    save_file({**tensors, name: torch.full((192,), number)}, tmp_path / WEIGHTS)
    if number:
        with pytest.raises(ModelError, match=rf"tensor {name} of shape \[192\] is not part of"):
            weights.load(tmp_path)
    else:
        ours = weights.load(tmp_path, activations="exact")
        assert_close(logits(ours), judge(theirs, TOKENS))


def test_a_weight_of_another_size_is_named(plain, tmp_path):
    quantised(plain, tmp_path, *WAYS["gptq"][:2])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 352}))
    with pytest.raises(
        ModelError, match=r"gate_proj.weight has shape \[320, 192\]; expected \[352, 192\]"
    ):
        weights.load(tmp_path)


def test_a_folder_whose_tensors_are_not_what_it_says(plain, tmp_path):
    """Described as GPTQ but plain: what lies there counts. Without a word, it is refused."""
    quantised(plain, tmp_path, {"quant_method": "gptq"}, None, name="none")
    assert_close(logits(weights.load(tmp_path)), judge(plain, TOKENS))
    quantised(plain, tmp_path, None, cases.gptq)
    with pytest.raises(ModelError, match=r"weights are quantised \(GPTQ or AWQ\), which is not"):
        weights.load(tmp_path)
    quantised(plain, tmp_path, {"quant_method": "awq"}, cases.float8)
    with pytest.raises(ModelError, match=r"weight_scale_inv of shape \[2, 3\] is not part of"):
        weights.load(tmp_path)


def test_the_embedding_is_looked_up_in_any_layout(plain, tmp_path):
    theirs = quantised(plain, tmp_path, CT, cases.int_quantized, name=EMBEDDING)
    assert_close(logits(weights.load(tmp_path)), judge(theirs, TOKENS))
    theirs = quantised(plain, tmp_path, CT, cases.int_quantized, name=f"{EMBEDDING}|{HEAD}")
    assert_close(logits(weights.load(tmp_path, activations="exact")), judge(theirs, TOKENS))
