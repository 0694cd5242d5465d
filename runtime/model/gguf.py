"""GGUF files as checkpoints: metadata to ModelConfig, tensors dequantised and renamed.

Knows nothing of tokenizers or of the transformer.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.model.config import ModelConfig, ModelError, check_count
from runtime.model.gguf_header import TensorInfo, read_header
from runtime.model.rope import DividedScaling, RopeScaling, scaling_from

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # mistral's files call themselves llama
ROPE_DIVISORS = "rope_freqs.weight"

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufFile:
    """A checkpoint in one .gguf file. Raises ModelError if it cannot be read or run."""

    def __init__(self, path: Path):
        self._metadata = Metadata(path)
        self._data = np.memmap(path, mode="r")
        tensors = {info.name: info for info in self._metadata.header.tensors}
        divisors = tensors.pop(ROPE_DIVISORS, None)
        self._check_places()
        self._tensors = {huggingface_name(name): info for name, info in tensors.items()}
        self.shapes = {name: info.shape for name, info in self._tensors.items()}
        try:
            self.config = _config(
                self._metadata, self.shapes, None if divisors is None else self._decoded(divisors)
            )
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None

    def _check_places(self) -> None:
        """Every tensor lies in the file, in bytes of its own, so that it is no larger than that."""
        header, end = self._metadata.header, self._metadata.header.data_start
        for info in sorted(header.tensors, key=lambda info: info.offset):
            first, n_bytes = header.data_start + info.offset, math.prod(self._stored_shape(info))
            if first < end and n_bytes:
                raise ModelError(f"{self._metadata.path}: tensor {info.name} overlaps another one")
            end = first + n_bytes
            if end > self._data.size:
                raise ModelError(f"{self._metadata.path} is cut short in tensor {info.name}")

    def n_bytes(self, name: str) -> int:
        return math.prod(self._stored_shape(self._tensors[name]))

    def read(self, name: str) -> Tensor:
        weight = self._decoded(self._tensors[name])
        if self._metadata.architecture == "llama" and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            return unpermuted(weight, self.config.head_dim)
        return weight

    def _decoded(self, info: TensorInfo) -> Tensor:
        """float32 values of a tensor."""
        from gguf.quants import dequantize

        shape = self._stored_shape(info)
        first = self._metadata.header.data_start + info.offset
        stored = self._data[first : first + math.prod(shape)]
        try:
            values = dequantize(stored.view(np.ndarray).reshape(shape), _ggml_type(info))
        except NotImplementedError:
            raise ModelError(f"tensor {info.name} has a type that cannot be decoded") from None
        # a float32 tensor is still a part of the mapped file, which must not be written to
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def _stored_shape(self, info: TensorInfo) -> tuple[int, ...]:
        """Shape in bytes: blocks lie along the last dimension."""
        from gguf.quants import quant_shape_to_byte_shape

        if not info.shape:
            raise ModelError(f"tensor {info.name} has no dimensions; expected at least one")
        try:
            return tuple(quant_shape_to_byte_shape(info.shape, _ggml_type(info)))
        except ValueError as error:
            raise ModelError(f"tensor {info.name}: {error}") from None


def _ggml_type(info: TensorInfo) -> Any:
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(info.ggml_type)
    except ValueError:
        raise ModelError(f"tensor {info.name} has the unknown type {info.ggml_type}") from None


class Metadata:
    """The key/value part of a GGUF file. Raises ModelError for a file that is none."""

    def __init__(self, path: Path):
        try:
            self.header = read_header(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not a readable GGUF file: {error}") from None
        self.path = path
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
        """One whole number above 0, as `number`."""
        value = self.number(key, default)
        try:
            check_count(f"metadata field {self.architecture}.{key}", value)
        except ValueError as error:
            raise ModelError(f"{self.path}: {error}") from None
        return int(value)

    def number(self, key: str, default: float | None = None) -> Any:
        """One number under the architecture's prefix; it must be there or have a default."""
        value = self.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, int | float):
            raise ModelError(
                f"{self.path}: metadata field {self.architecture}.{key} is {value!r}; "
                "expected a number"
            )
        return value


def _config(
    metadata: Metadata, shapes: dict[str, tuple[int, ...]], divisors: Tensor | None
) -> ModelConfig:
    architecture, number, count = metadata.architecture, metadata.number, metadata.count
    n_heads, hidden_size = count("attention.head_count"), count("embedding_length")
    head_dim = count("attention.key_length", hidden_size // n_heads)
    if "model.embed_tokens.weight" not in shapes:
        raise ValueError("tensor token_embd.weight is missing")
    vocab_size = shapes["model.embed_tokens.weight"][0]
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
        max_context=count("context_length"),
        head_size=vocab_size,
        rope_scaling=_rope_scaling(metadata, divisors, head_dim),
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in shapes,
        qk_norm=architecture == "qwen3",
        tied_embedding="lm_head.weight" not in shapes,
        sliding_window=metadata.get(f"{architecture}.attention.sliding_window"),
    )


def _rope_scaling(metadata: Metadata, divisors: Tensor | None, head_dim: int) -> RopeScaling | None:
    if divisors is not None:
        if divisors.shape != (head_dim // 2,):
            raise ValueError(
                f"tensor {ROPE_DIVISORS} has shape {list(divisors.shape)}; "
                f"expected {[head_dim // 2]}"
            )
        return DividedScaling(tuple(divisors.tolist()))
    prefix = f"{metadata.architecture}.rope.scaling"
    kind = metadata.get(f"{prefix}.type", "none")
    if kind == "none":
        return None
    scaling = {
        "rope_type": kind,
        "factor": metadata.get(f"{prefix}.factor"),
        "original_max_position_embeddings": metadata.get(f"{prefix}.original_context_length"),
        "attention_factor": metadata.get(f"{prefix}.attn_factor"),
    }
    return scaling_from(scaling, metadata.count("context_length"))


def huggingface_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; unknown names stay."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    return name


def unpermuted(weight: Tensor, head_dim: int) -> Tensor:
    """GGUF stores llama's rotary pairs side by side, Hugging Face half a head apart."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
