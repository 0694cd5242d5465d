"""Random configurations of every family: transformers' logits, or a sentence that we mean."""

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.model import weights
from runtime.model.config import FAMILIES, ModelError
from tests.model import tiny
from tests.model.tiny import assert_close, chain, judge

TOKENS = [(7 * i) % tiny.VOCAB for i in range(40)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# each as published configurations write it, in the spelling of transformers 4 or 5
ROPES = (
    {"rope_theta": 500000},
    {"rope_theta": 1e6, "rope_scaling": None},
    {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 10000.0, "rope_scaling": {**YARN, "type": "yarn"}},
    {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 16}},
    {"rope_scaling": {**YARN, "attention_factor": 0.8}, "original_max_position_embeddings": 16},
    {"rope_theta": 10000.0, "rope_scaling": tiny.LLAMA3_ROPE},
    {"rope_parameters": {**tiny.LLAMA3_ROPE, "original_max_position_embeddings": 16}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}, "rope_theta": 5.0},
    {"rope_parameters": {**YARN, "rope_theta": 5000.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
)
WINDOWS = (
    {"sliding_window": None},
    {"sliding_window": 6},
    {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
    {"sliding_window": 6, "use_sliding_window": False},
    {"sliding_window": None, "use_sliding_window": True},
    {
        "sliding_window": 6,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    {
        "sliding_window": 6,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
HEADS = (
    {"num_key_value_heads": 4, "head_dim": 24},
    {"num_key_value_heads": 1, "head_dim": 16},
    {"num_key_value_heads": 2},
)
SWITCHES = {
    "attention_bias": (False, True),
    "mlp_bias": (False, True),
    "tie_word_embeddings": (False, True),
    "hidden_act": ("silu", "swish", "gelu"),
    "vocab_size": (tiny.VOCAB, 131),
    "rms_norm_eps": (1e-6, 1e-2),
    "qkv_bias": (False, True),  # no family's own
    "head_bias": (True,),
}
MEANT = (
    "activation 'gelu' is not supported",
    "rope scaling 'dynamic' is not supported",
    "layer_types is not supported",
)


def fields(rng: random.Random) -> dict:
    chosen: dict = {**tiny.SIZES, "model_type": rng.choice(FAMILIES)}
    for key in ("num_key_value_heads", "tie_word_embeddings"):
        del chosen[key]
    chosen |= rng.choice(HEADS) | rng.choice(ROPES)
    # a mistral's layers are what transformers refuses to build once it sees layer_types
    windows = [w for w in WINDOWS if chosen["model_type"] != "mistral" or "layer_types" not in w]
    if chosen["model_type"] == "qwen2_moe":  # transformers has windows there without a width
        windows.remove({"sliding_window": None, "use_sliding_window": True})
    chosen |= rng.choice(windows)
    for key in rng.sample(sorted(SWITCHES), 4):
        chosen[key] = rng.choice(SWITCHES[key])
    return chosen


def loaded(folder):
    """The model, or the sentence that refuses it."""
    try:
        return weights.load(folder)
    except ModelError as refusal:
        return str(refusal)


@pytest.mark.parametrize("seed", range(80))
def test_configurations_mean_what_transformers_makes_of_them(tmp_path, seed):
    chosen = fields(random.Random(seed))
    (tmp_path / "config.json").write_text(json.dumps(chosen))
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(chosen))  # not as transformers puts it
    ours = loaded(tmp_path)
    if isinstance(ours, str):
        assert any(sentence in ours for sentence in MEANT), chosen
        return
    engine = tiny.engine_of(ours)
    logits = engine.forward([chain(TOKENS, 0, engine.kv.allocate(10))])
    assert_close(logits, judge(theirs, TOKENS))
