"""Rotary position embedding: frequencies, the ways of stretching them, and the tables.

Source: RoFormer (arXiv:2104.09864), in the half-rotated layout of llama: dimension d turns
together with d + D/2. Knows nothing of models: only head size, base and scaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MAX_CONTEXT_TOKENS = 2**21  # tables of more would take gigabytes


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    factor: float
    attention_factor: float = 1.0

    def apply(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, a ramp in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int
    attention_factor = 1.0

    def apply(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_context / (2 * math.pi / frequencies)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = ramp.clamp(0, 1)
        return (1 - ramp) * frequencies / self.factor + ramp * frequencies


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071, section 3): a ramp over dimensions, and sharper attention."""

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def apply(self, frequencies: Tensor, theta: float) -> Tensor:
        half = frequencies.shape[0]
        low = self._dimension(self.beta_fast, half, theta)
        high = self._dimension(self.beta_slow, half, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        # the width of an empty ramp is the one transformers uses, to give the same numbers
        import torch

        ramp = (torch.arange(half) - low) / (high - low or 0.001)
        keep = 1 - ramp.clamp(0, 1)
        return frequencies / self.factor * (1 - keep) + frequencies * keep

    def _dimension(self, turns: float, half: int, theta: float) -> float:
        """The dimension whose wave makes `turns` turns over the original context."""
        waves = self.original_context / (turns * 2 * math.pi)
        return half * math.log(waves) / math.log(theta)


@dataclass(frozen=True)
class DividedScaling:
    """Each frequency divided by its own number: how GGUF files store llama 3's scaling.

    `scaling` is applied to the quotients.
    """

    divisors: tuple[float, ...]
    scaling: LinearScaling | YarnScaling = LinearScaling(1.0)

    @property
    def attention_factor(self) -> float:
        return self.scaling.attention_factor

    def apply(self, frequencies: Tensor, theta: float) -> Tensor:
        if len(self.divisors) != len(frequencies):
            raise ValueError(
                f"rope scaling has {len(self.divisors)} divisors, expected {len(frequencies)}"
            )
        import torch

        return self.scaling.apply(frequencies / torch.tensor(self.divisors), theta)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DividedScaling


def scaling_from(rope: Mapping[str, Any], max_context: int) -> RopeScaling | None:
    """The scaling that Hugging Face's rope parameters describe, None for plain RoPE.

    Raises ValueError for kinds, and variants of kinds, that are not supported.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    original = int(_number(rope, "original_max_position_embeddings", max_context))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(_number(rope, "factor"))
    if kind == "llama3":
        low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
        return Llama3Scaling(_number(rope, "factor"), low, high, original)
    if kind == "yarn":
        return _yarn(rope, original, max_context)
    raise ValueError(f"rope scaling {kind!r} is not supported; expected linear, llama3 or yarn")


def stretched_context(scaling: RopeScaling | None, stated: int) -> int:
    """Tokens that a model runs to whose file states a context of `stated`.

    Files disagree on what they state. With linear scaling it is the context before stretching, as
    transformers' documentation of rope_scaling asks for. With YaRN both are found (Qwen's cards
    state 32,768 and a factor of 4, DeepSeek's the product), so the larger one counts. Llama 3's
    files state the stretched context, and divisors stored in a GGUF file come from one of those.
    vLLM derives the same numbers. What is more than MAX_CONTEXT_TOKENS is cut to that.
    """
    stretched = float(stated)
    if isinstance(scaling, LinearScaling):
        stretched *= scaling.factor
    elif isinstance(scaling, YarnScaling):
        stretched = scaling.original_context * scaling.factor
    return int(min(max(stated, stretched), MAX_CONTEXT_TOKENS))


def _yarn(rope: Mapping[str, Any], original: int, max_context: int) -> YarnScaling:
    factor = _number(rope, "factor", max_context / original)

    def sharpening(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = sharpening(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention_factor = sharpening(_number(rope, "mscale"))
        attention_factor /= sharpening(_number(rope, "mscale_all_dim"))
    return YarnScaling(
        factor=factor,
        original_context=original,
        attention_factor=_number(rope, "attention_factor", attention_factor),
        beta_fast=_number(rope, "beta_fast", 32.0),
        beta_slow=_number(rope, "beta_slow", 1.0),
        truncate=bool(rope.get("truncate", True)),
    )


def _number(rope: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number; what is absent, null or 0 is the default."""
    value = rope.get(key) or default
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"rope scaling: {key} is {value!r}; expected a number above 0")
    return value


def rope_tables(
    head_dim: int, theta: float, scaling: RopeScaling | None, max_context: int
) -> tuple[Tensor, Tensor]:
    """cos and sin [C, D] float32 as `rope_append_kv` takes them: half of sin is negated."""
    import torch

    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**powers  # [D / 2]
    if scaling is not None:
        frequencies = scaling.apply(frequencies, theta)
    angles = torch.arange(max_context, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None:
        cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
