"""Small random models of published families: every field of a config.json, its sizes shrunk.

`published.json` holds what each family's config.json says, written down by hand; lists with an
entry a layer hold the first layers. transformers makes the model and judges it.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCAB = 260  # bytes, and a few more
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "ffn_dim", "n_inner"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_k"), 3),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "model_max_length"), 128),
    **dict.fromkeys(("original_max_position_embeddings", "initial_context_length"), 16),
    "mm_tokens_per_image": 4,
    "query_pre_attn_scalar": 24,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "org_vocab_size"), VOCAB),
    **{"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8},
    **{"v_head_dim": 16, "hidden_size_per_layer_input": 8, "laurel_rank": 8, "rotary_dim": 8},
    **{"n_group": 4, "topk_group": 2, "attention_head_dim": 16},
    **{"moe_topk": 3, "first_k_dense_replace": 1, "num_dense_layers": 1},
    **{"shared_intermediate_size": 96, "mamba_n_heads": 8, "mamba_d_head": 16},
    **{"num_kv_shared_layers": 5, "num_global_key_value_heads": 1, "global_head_dim": 32},
}
# sizes that a text_config may leave to transformers
UNSAID = {"vocab_size": VOCAB, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
UNSAID |= {"max_position_embeddings": 128}
VISION = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "vision_output_dim"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 32),
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
    **{"image_size": 28, "patch_size": 14},
}
WINDOWS = ("sliding_window", "sliding_window_size")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")


@dataclass(frozen=True)
class Family:
    """One entry of published.json."""

    family: str  # its name among people
    checkpoint: str  # whose config.json it is
    layers: int  # as few as show all kinds of layers
    config: dict[str, Any]
    refused: str | None = None  # the reason, where it does not run

    @property
    def model_type(self) -> str:
        """Of its text part."""
        text: dict[str, str] = self.config.get("text_config", self.config)
        return text["model_type"]


FAMILIES = {
    name: Family(**entry)
    for name, entry in json.loads(Path(__file__).with_name("published.json").read_text()).items()
}


def cut(family: Family) -> dict[str, Any]:
    """The config.json as published, of a model of few layers."""
    return {name: family.layers if name in LAYERS else v for name, v in family.config.items()}


def shrunk(published: dict[str, Any], layers: int) -> dict[str, Any]:
    """A config.json with small sizes; what is no size stays as published."""
    config: dict[str, Any] = _smaller(published)
    if "text_config" in config:
        config["text_config"] = UNSAID | shrunk(published["text_config"], layers)
        tower = config["vision_config"]
        tower |= {name: size for name, size in VISION.items() if name in tower}
        return config
    for name in LAYERS:
        if name in config:
            config[name] = layers
    if heads := published.get("num_key_value_heads"):
        every = published["num_attention_heads"]
        config["num_key_value_heads"] = 4 if heads == every else min(heads, 2)
    if published.get("head_dim"):
        whole = published["hidden_size"] // published["num_attention_heads"]
        config["head_dim"] = 16 if whole == published["head_dim"] else 24
    for name in WINDOWS:
        if window := published.get(name):
            longest = published.get("max_position_embeddings", window + 1)
            # never reached where it never was, unless layers are said to have it
            config[name] = 256 if window >= longest and "layer_types" not in published else 8
    if "moe_layer_end_index" in config:
        config["moe_layer_end_index"] = layers - 1
    _fit_factors(config)
    return config


def _smaller(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _smaller(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_smaller(part, name) for part in value]
    if value is None or isinstance(value, bool | str):
        return value
    if name.endswith("token_id"):
        return value % VOCAB
    return min(value, SIZES[name]) if name in SIZES else value


def _fit_factors(config: dict[str, Any]) -> None:
    """longrope has a factor for each pair of turned dimensions."""
    rope = config.get("rope_scaling") or {}
    head = config.get("head_dim") or config.get("qk_rope_head_dim") or 16
    turned = int(head * config.get("partial_rotary_factor", 1.0)) // 2
    for name in ("long_factor", "short_factor"):
        if name in rope:
            step = len(rope[name]) / turned
            rope[name] = [rope[name][int(i * step)] for i in range(turned)]


def save(family: Family, folder: Path) -> torch.nn.Module:
    """A random model in the folder, with the shrunk config.json as published; and the model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    (folder / "config.json").write_text(json.dumps(shrunk(family.config, family.layers)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.from_pretrained(folder)
        config.initializer_range = config.get_text_config().initializer_range = 0.2
        whole = "text_config" in family.config
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings
        made_by = AutoModelForImageTextToText if whole else AutoModelForCausalLM
        torch.manual_seed(0)
        model = made_by.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    _enliven(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(shrunk(family.config, family.layers)))
    text_model = getattr(model, "language_model", None)
    return text_model if hasattr(text_model, "lm_head") else model


@torch.no_grad()
def _enliven(model: torch.nn.Module) -> None:
    """Norms, biases, sinks and router corrections other than the ones and zeros they start as."""
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    for name, buffer in sorted(model.named_buffers()):
        if "bias" in name and buffer.is_floating_point():
            buffer.add_(torch.randn_like(buffer) * 0.2)
