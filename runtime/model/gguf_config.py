"""A GGUF file's keys: typed access, and the ModelConfig that they describe.

Keys mean what llama.cpp makes of them, which is what the files are written for: what it does not
read for these architectures is not read here either, and what it reads and the transformer cannot
do is refused. Knows the tensors' names and shapes, not their bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.model.config import (
    MAX_STATED_TOKENS,
    ExpertsConfig,
    ModelConfig,
    ModelError,
    check_count,
)
from runtime.model.gguf_header import Header, read_header
from runtime.model.rope import (
    DividedScaling,
    LinearScaling,
    RopeScaling,
    YarnScaling,
    scaling_from,
    stretched_context,
)

if TYPE_CHECKING:
    from torch import Tensor

# mistral's and mixtral's files call themselves llama
ARCHITECTURES = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
ROPE_DIVISORS = "rope_freqs.weight"


class Metadata:
    """The key/value part of a GGUF file, or of the first part of a split one.

    Raises ModelError for a file that is none, and for another part.
    """

    def __init__(self, path: Path):
        self.path, self.header = path, header_of(path)
        number, count = (self.header.metadata.get(f"split.{key}") for key in ("no", "count"))
        if isinstance(number, int) and number:
            raise ModelError(
                f"{path} is part {number + 1} of {count} of a model; give the first part"
            )
        self.architecture = self.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"{path}: architecture {self.architecture!r} is not supported; expected "
                f"{', '.join(ARCHITECTURES)}"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a full key."""
        return self.header.metadata.get(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        """One whole number above 0, as `number`, or a list with that number for every layer.

        Raises ValueError.
        """
        value = self.get(f"{self.architecture}.{key}")
        layers = self.get(f"{self.architecture}.block_count")
        if isinstance(value, list) and len(value) == layers and len(set(value)) == 1:
            value = value[0]
        else:
            value = self.number(key, default)
        check_count(f"metadata field {self.architecture}.{key}", value)
        return int(value)

    def number(self, key: str, default: float | None = None) -> Any:
        """One number under the architecture's prefix; it must be there or have a default.

        Raises ValueError.
        """
        value = self.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
            raise ValueError(
                f"metadata field {self.architecture}.{key} is {shown}; expected a number"
            )
        return value


def header_of(path: Path) -> Header:
    """The header of a GGUF file. Raises ModelError for a file that is none."""
    try:
        return read_header(path)
    except OSError as error:  # another account's, or too many files are open
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from None


def config_from(
    metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], divisors: Tensor | None
) -> ModelConfig:
    """The ModelConfig of a file whose tensors have these shapes, by Hugging Face name.

    divisors: the tensor rope_freqs.weight. Raises ValueError for what is not supported.
    """
    number, count = metadata.number, metadata.count
    n_heads, hidden_size = count("attention.head_count"), count("embedding_length")
    head_dim = count("attention.key_length", hidden_size // n_heads)
    _refuse_unknown_features(metadata, head_dim)
    if "model.embed_tokens.weight" not in shapes:
        raise ValueError("tensor token_embd.weight is missing")
    vocab_size = shapes["model.embed_tokens.weight"][0]
    scaling = _rope_scaling(metadata, divisors, head_dim)
    stated = count("context_length")
    check_count("context_length", stated, MAX_STATED_TOKENS)
    first, is_llama = "model.layers.0", metadata.architecture == "llama"
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        n_layers=count("block_count"),
        n_heads=n_heads,
        n_kv_heads=count("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        intermediate_size=count("feed_forward_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base", 10000.0),
        max_context=stretched_context(scaling, stated),
        head_size=vocab_size,
        rope_scaling=scaling,
        qkv_bias=f"{first}.self_attn.q_proj.bias" in shapes,
        # llama.cpp knows these two in files of llama only
        output_bias=is_llama and f"{first}.self_attn.o_proj.bias" in shapes,
        mlp_bias=is_llama and f"{first}.mlp.down_proj.bias" in shapes,
        qk_norm=metadata.architecture in ("qwen3", "qwen3moe"),
        tied_embedding="lm_head.weight" not in shapes,
        # Files of mistral and qwen2 may name attention.sliding_window. llama.cpp lets their tokens
        # see everything, and the texts that people compare with come from there.
        sliding_window=None,
        experts=_experts(metadata),
    )


def _experts(metadata: Metadata) -> ExpertsConfig | None:
    """As llama.cpp has them in all layers: only in qwen2moe the weights are not normalised."""
    architecture, count = metadata.architecture, metadata.count
    if not metadata.number("expert_count", 0) and not architecture.endswith("moe"):
        return None
    n_chosen, size = count("expert_used_count"), count("feed_forward_length")
    if architecture != "llama":
        size = count("expert_feed_forward_length", max(size // n_chosen, 1))
    shared_size = None
    if architecture == "qwen2moe":
        shared_size = count("expert_shared_feed_forward_length", count("feed_forward_length"))
    return ExpertsConfig(
        n_experts=count("expert_count"),
        n_chosen=n_chosen,
        intermediate_size=size,
        normalise=architecture != "qwen2moe",
        shared_size=shared_size,
    )


def _refuse_unknown_features(metadata: Metadata, head_dim: int) -> None:
    architecture, number = metadata.architecture, metadata.number
    unknown = ["nextn_predict_layers"]
    if architecture in ("qwen2", "qwen3"):
        unknown.append("expert_count")
    for key in unknown:
        if number(key, 0):
            raise ValueError(f"{architecture}.{key} is {number(key)}; expected none of them")
    if number("expert_group_count", 0) > 1:
        raise ValueError(f"{architecture}.expert_group_count is above 1; expected no groups")
    causal = metadata.get(f"{architecture}.attention.causal", True)
    if causal is not True:
        raise ValueError(f"{architecture}.attention.causal is {causal!r}; expected True")
    default = metadata.count("embedding_length") // metadata.count("attention.head_count")
    for key, value in (
        ("attention.value_length", number("attention.value_length", default)),
        ("rope.dimension_count", number("rope.dimension_count", head_dim)),
    ):
        if value != head_dim:
            raise ValueError(
                f"{architecture}.{key} is {value}; expected the size of a key, {head_dim}"
            )


def _rope_scaling(metadata: Metadata, divisors: Tensor | None, head_dim: int) -> RopeScaling | None:
    scaling = _stretching(metadata)
    if divisors is None:
        return None if scaling == LinearScaling(1.0) else scaling
    if divisors.shape != (head_dim // 2,):
        raise ValueError(
            f"tensor {ROPE_DIVISORS} has shape {list(divisors.shape)}; expected {[head_dim // 2]}"
        )
    if not (divisors > 0).all():
        raise ValueError(f"tensor {ROPE_DIVISORS} must hold numbers above 0")
    return DividedScaling(tuple(divisors.tolist()), scaling)


def _stretching(metadata: Metadata) -> LinearScaling | YarnScaling:
    """llama.cpp reads a factor without a type as linear scaling; old files call it scale_linear.

    attn_factor multiplies what the kind of scaling gives; the keys named yarn_* are not read.
    """
    kind = metadata.get(f"{metadata.architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope scaling {kind!r} is not supported; expected none, linear or yarn")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 0))
    context = metadata.count("context_length")
    described = {
        "rope_type": "yarn" if kind == "yarn" else "linear",
        "factor": 1.0 if kind == "none" else factor or 1.0,
        "original_max_position_embeddings": metadata.number(
            "rope.scaling.original_context_length", context
        ),
    }
    scaling = scaling_from(described, context)
    assert isinstance(scaling, LinearScaling | YarnScaling)
    sharpening = metadata.number("rope.scaling.attn_factor", 1.0)
    if not 0 < sharpening < math.inf:
        raise ValueError(f"rope.scaling.attn_factor is {sharpening}; expected a number above 0")
    return dataclasses.replace(scaling, attention_factor=scaling.attention_factor * sharpening)
