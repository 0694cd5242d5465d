"""What a model is, as numbers: the one description that the transformer is built from.

Families differ by these fields and by nothing else. Knows no tensors and no files.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from runtime.model.rope import (
    MAX_CONTEXT_TOKENS,
    RopeScaling,
    scaling_from,
    stretched_context,
)

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
COUNTS = (
    *("vocab_size", "hidden_size", "n_layers", "n_heads", "n_kv_heads", "head_dim"),
    *("intermediate_size", "max_context", "head_size"),
)
# A file's word for these is taken before any of its tensors is looked at: loops and tables of their
# size must stay small. Other counts must agree with tensors that are there.
MAX_LAYERS, MAX_EXPERTS = 1024, 2**16  # experts of all layers
MAX_STATED_TOKENS = 2**24  # of a context; published models state up to 10,485,760


class ModelError(ValueError):
    """A model that cannot be found, read or run, in a sentence for the person who named it."""


class Unsupported(ModelError):
    """A model that our own transformer does not run, and transformers' modules perhaps do."""


class KVShape(NamedTuple):
    """What one layer keeps of a token."""

    n_heads: int
    key_width: int
    value_width: int  # 0 where values are a part of the keys, as of latent attention

    @property
    def n_numbers(self) -> int:
        return self.n_heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class ExpertsConfig:
    """The mixture of experts of a layer: softmax of the router's logits, the best of them chosen.

    Raises ValueError for impossible numbers.
    """

    n_experts: int
    n_chosen: int  # of each row
    intermediate_size: int  # of one expert
    normalise: bool  # the weights of the chosen add up to 1
    shared_size: int | None = None  # of the expert that every row asks, if there is one
    dense_layers: tuple[int, ...] = ()  # whose MLP is a plain one

    def __post_init__(self) -> None:
        for name in ("n_experts", "n_chosen", "intermediate_size"):
            check_count(name, getattr(self, name), MAX_EXPERTS if name == "n_experts" else None)
        if self.shared_size is not None:
            check_count("shared_size", self.shared_size)
        if self.n_chosen > self.n_experts:
            raise ValueError(f"{self.n_chosen} of {self.n_experts} experts cannot be chosen")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the llama kind. Raises ValueError for impossible numbers."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_context: int
    # rows of the output head: fewer than vocab_size where a draft predicts only common tokens
    head_size: int
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embedding: bool = False
    # tokens a node sees, itself included, in layers from n_full_layers on; None sees everything
    sliding_window: int | None = None
    n_full_layers: int = 0
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} query heads cannot be shared by {self.n_kv_heads} key/value "
                "heads; expected a multiple"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding needs an even number")
        if self.tied_embedding and self.head_size != self.vocab_size:
            raise ValueError(
                f"a tied output head has a row for every token: head_size is {self.head_size}, "
                f"expected {self.vocab_size}"
            )

    def _check_numbers(self) -> None:
        most = {"n_layers": MAX_LAYERS, "max_context": MAX_CONTEXT_TOKENS}
        for name in COUNTS:
            check_count(name, getattr(self, name), most.get(name))
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window)
        if self.experts is not None:
            check_count("n_layers", self.n_layers, MAX_EXPERTS // self.experts.n_experts)
        # at 1 and below, dimensions would not turn slower and slower
        for name, least in (("rms_norm_eps", 0.0), ("rope_theta", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least < value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a number above {least:g}")

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """Of each layer."""
        return (KVShape(self.n_kv_heads, self.head_dim, self.head_dim),) * self.n_layers

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """The mixture of experts of `layer`, None where its MLP is a plain one."""
        if self.experts is None or layer in self.experts.dense_layers:
            return None
        return self.experts

    def window(self, layer: int) -> int:
        """Tokens that a node of `layer` sees, itself included; -1 for all of them."""
        if self.sliding_window is None or layer < self.n_full_layers:
            return -1
        return self.sliding_window


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raises ValueError unless value is a whole number from 1 up to `most`."""
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        limit = "at least 1" if most is None else f"1 .. {most}"
        raise ValueError(f"{name} is {value!r}; expected {limit}")


def from_huggingface(config: Any) -> ModelConfig:
    """The ModelConfig of a transformers configuration of one of the `FAMILIES`.

    Raises ValueError for a family or a feature that the transformer does not implement, rather
    than computing something else.
    """
    _refuse_unknown(config)
    family, n_heads = config.model_type, config.num_attention_heads
    rope = _rope_parameters(config)
    check_count("max_position_embeddings", config.max_position_embeddings, MAX_STATED_TOKENS)
    scaling = scaling_from(rope, config.max_position_embeddings)
    # the other families have no such switch: a configuration's word for it is not heard
    attention_bias = family in ("llama", "qwen3", "qwen3_moe") and getattr(
        config, "attention_bias", False
    )
    sliding_window, n_full_layers = _sliding_window(config)
    return ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=config.num_key_value_heads or n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        max_context=stretched_context(scaling, config.max_position_embeddings),
        head_size=getattr(config, "head_tokens", None) or config.vocab_size,
        rope_scaling=scaling,
        qkv_bias=family == "qwen2" or attention_bias or (family == "qwen2_moe" and config.qkv_bias),
        output_bias=attention_bias,
        mlp_bias=family == "llama" and getattr(config, "mlp_bias", False),
        qk_norm=family in ("qwen3", "qwen3_moe"),
        tied_embedding=bool(config.tie_word_embeddings),
        sliding_window=sliding_window,
        n_full_layers=n_full_layers,
        experts=_experts(config),
    )


def _refuse_unknown(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model type {config.model_type!r} is not supported; expected {', '.join(FAMILIES)}"
        )
    if config.hidden_act not in ("silu", "swish"):  # two names of one function
        raise ValueError(f"activation {config.hidden_act!r} is not supported; expected 'silu'")


def _experts(config: Any) -> ExpertsConfig | None:
    """Mixtral's experts are in every layer and their weights always add up to 1."""
    if config.model_type == "mixtral":
        return ExpertsConfig(
            n_experts=config.num_local_experts,
            n_chosen=config.num_experts_per_tok,
            intermediate_size=config.intermediate_size,
            normalise=True,
        )
    if config.model_type not in ("qwen2_moe", "qwen3_moe"):
        return None
    every, plain = config.decoder_sparse_step, config.mlp_only_layers or ()
    check_count("decoder_sparse_step", every)
    layers = range(config.num_hidden_layers)
    return ExpertsConfig(
        n_experts=config.num_experts,
        n_chosen=config.num_experts_per_tok,
        intermediate_size=config.moe_intermediate_size,
        normalise=bool(config.norm_topk_prob),
        shared_size=getattr(config, "shared_expert_intermediate_size", None),
        dense_layers=tuple(i for i in layers if i in plain or (i + 1) % every),
    )


def _rope_parameters(config: Any) -> dict[str, Any]:
    """transformers 5 keeps them in rope_parameters, transformers 4 in two attributes."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        rope = {"rope_theta": config.rope_theta, **(config.rope_scaling or {})}
    if not isinstance(rope.get("rope_theta"), int | float):
        raise ValueError(
            f"rope_theta is {rope.get('rope_theta')!r}; expected one number for all layers"
        )
    # as transformers does: a context stated outside of the rope parameters counts
    original = getattr(config, "original_max_position_embeddings", None)
    return rope if original is None else {**rope, "original_max_position_embeddings": original}


def _sliding_window(config: Any) -> tuple[int | None, int]:
    """The window and the number of leading layers without one.

    Fields that a family does not have are not heard: a llama never has a window, and a mistral has
    its window in all layers.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or config.model_type == "llama":
        return None, 0
    if config.model_type in ("mistral", "mixtral"):
        return window, 0
    if not config.use_sliding_window:
        return None, 0
    if config.model_type == "qwen3_moe":
        return window, 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    n_full = kinds.index("sliding_attention") if "sliding_attention" in kinds else len(kinds)
    if kinds != ["full_attention"] * n_full + ["sliding_attention"] * (len(kinds) - n_full):
        raise ValueError(
            "layer_types is not supported: full_attention layers must come before "
            f"sliding_attention ones, got {kinds}"
        )
    return window, n_full
