"""transformers' configurations as ours, and the ones that must be refused."""

import dataclasses

import pytest
from transformers import AutoConfig

from runtime.model.config import ModelConfig, from_huggingface
from runtime.model.rope import YarnScaling
from tests.model import tiny


def configured(**fields):
    return from_huggingface(AutoConfig.for_model(**{**tiny.SIZES, "model_type": "llama", **fields}))


def test_families_differ_by_data():
    assert configured() == ModelConfig(
        vocab_size=120,
        hidden_size=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        intermediate_size=100,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_context=128,
        head_size=120,
    )
    assert configured(model_type="qwen2").qkv_bias
    assert not configured(model_type="qwen2").qk_norm
    qwen3 = configured(model_type="qwen3")
    assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim) == (True, False, 128)
    assert configured(model_type="qwen3", rope_parameters=tiny.YARN_ROPE).rope_scaling == (
        YarnScaling(4.0, 32, pytest.approx(1.1386, abs=1e-4))
    )


def test_windows_by_layer():
    def windows(**fields):
        config = configured(**fields)
        return [config.window(layer) for layer in range(config.n_layers)]

    assert windows() == [-1, -1]
    assert windows(model_type="mistral", sliding_window=9) == [9, 9]
    assert windows(**tiny.WINDOWED_QWEN2) == [-1, 6, 6]
    assert windows(**{**tiny.WINDOWED_QWEN2, "max_window_layers": 3}) == [-1, -1, -1]
    assert windows(**{**tiny.WINDOWED_QWEN2, "use_sliding_window": False}) == [-1, -1, -1]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2' is not supported; expected llama, mistral, qw"),
        ({"attention_bias": True}, "attention_bias is not supported for model type 'llama'"),
        ({"mlp_bias": True}, "mlp_bias is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported; expected 'silu'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "layer_types is not supported",
        ),
        ({"num_key_value_heads": 3}, "4 query heads cannot be shared by 3 key/value heads"),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "sliding_window is 0; expected at least 1",
        ),
    ],
)
def test_unsupported_is_an_error_not_another_result(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        configured(**fields)


def test_a_tied_head_cannot_be_cut():
    with pytest.raises(ValueError, match="head_size is 50, expected 120"):
        dataclasses.replace(configured(tie_word_embeddings=True), head_size=50)


def test_an_odd_head_cannot_be_turned():
    with pytest.raises(ValueError, match="head_dim is 15; rotary embedding needs an even number"):
        dataclasses.replace(configured(), head_dim=15)


class Transformers4:
    """The attributes that transformers 4 gave a configuration where 5 has rope_parameters."""

    model_type, hidden_act, tie_word_embeddings = "llama", "silu", False
    vocab_size, hidden_size, num_hidden_layers, intermediate_size = 120, 64, 2, 100
    num_attention_heads, num_key_value_heads, rms_norm_eps = 4, 2, 1e-6
    max_position_embeddings, rope_theta = 128, 10000.0
    rope_scaling = None


def test_configurations_of_transformers_4():
    assert from_huggingface(Transformers4()) == configured()
