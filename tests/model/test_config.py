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
        (
            {"model_type": "gpt2"},
            "model type 'gpt2' is not supported; expected llama, mistral, mix",
        ),
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
        (
            {"model_type": "qwen2", "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "rope_theta is None; expected one number for all layers",
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


def test_fields_that_a_family_does_not_have_are_not_heard():
    """transformers keeps them in the configuration, and its models never look."""
    for extra in ({"sliding_window": 6}, {"layer_types": ["sliding_attention"] * 2}):
        assert configured(**extra, use_sliding_window=True) == configured()
    mistral = {"model_type": "mistral", "sliding_window": 6}
    assert configured(**mistral, use_sliding_window=False) == configured(**mistral)
    assert configured(**mistral, layer_types=["full_attention"] * 2) == configured(**mistral)
    for family in ("mistral", "qwen2"):
        plain = configured(model_type=family)
        assert configured(model_type=family, attention_bias=True, mlp_bias=True) == plain
    assert configured(model_type="qwen3", mlp_bias=True) == configured(model_type="qwen3")


def test_swish_is_silu():
    assert configured(hidden_act="swish") == configured()


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {**tiny.LLAMA3_ROPE, "rope_theta": 1e6, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("stated", "rope", "context"),
    [
        # Qwen's cards ask for these lines beside the context that is stretched
        (32768, YARN, 131072),
        (40960, YARN, 131072),
        (32768, {**YARN, "factor": 2}, 65536),
        # others state what comes of it (DeepSeek, Yarn-Llama), or something in between
        (131072, YARN, 131072),
        (32768, {**YARN, "factor": 16.0, "original_max_position_embeddings": 8192}, 131072),
        (163840, {**YARN, "factor": 40, "original_max_position_embeddings": 4096}, 163840),
        # and what is stated is never made less
        (40960, {**YARN, "factor": 1.0}, 40960),
        # without an original context transformers takes the stated one
        (32768, {"type": "yarn", "factor": 4.0}, 131072),
        # "don't update max_position_embeddings", say transformers' pages of linear scaling
        (4096, {"type": "linear", "factor": 4.0}, 16384),
        (4096, {"type": "linear", "factor": 2.5}, 10240),
        # Llama 3.1 and 3.2 state the stretched context; Qwen2.5-1M has no scaling
        (131072, LLAMA3, 131072),
        (1010000, None, 1010000),
        # Llama 4 Scout and MiniMax-Text state ten millions, Gradient's Llama 3 four: two are run
        (10485760, LLAMA3, 2097152),
        (4194304, None, 2097152),
        (2097152, None, 2097152),
        (1048576, {"type": "linear", "factor": 4.0}, 2097152),
        (32768, {**YARN, "factor": 1000}, 2097152),
    ],
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_context_that_scaling_gives(model_type, stated, rope, context):
    fields = {"model_type": model_type, "max_position_embeddings": stated}
    version_4 = configured(**fields, rope_theta=1e6, rope_scaling=rope)
    assert (version_4.max_context, version_4.rope_theta) == (context, 1e6)
    if rope is not None:
        version_5 = {"rope_type": rope.get("type", "llama3"), **rope, "rope_theta": 1e6}
        assert configured(**fields, rope_parameters=version_5) == version_4


def test_a_context_beyond_all_bounds_is_refused():
    sentence = r"max_position_embeddings is 16777217; expected 1 \.\. 16777216"
    with pytest.raises(ValueError, match=sentence):
        configured(max_position_embeddings=2**24 + 1)


def test_an_original_context_outside_of_the_rope_parameters_counts():
    outside = {"original_max_position_embeddings": 32, "rope_theta": 1e4}
    scaling = {"rope_type": "yarn", "factor": 4.0}
    assert configured(**outside, rope_scaling=scaling).rope_scaling == YarnScaling(
        4.0, 32, pytest.approx(1.1386, abs=1e-4)
    )


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
