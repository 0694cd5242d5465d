"""GGUF files as checkpoints: tensors found in one file or many parts, and renamed.

Knows nothing of tokenizers or of the transformer.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.model.config import MAX_EXPERTS, ModelError
from runtime.model.file_bytes import Version, read_bytes, version_of
from runtime.model.formats import floats
from runtime.model.gguf_config import ROPE_DIVISORS, Metadata, config_from
from runtime.model.gguf_header import Header, TensorInfo
from runtime.model.gguf_split import parts_of
from specedge_kernels import StoredWeight
from specedge_kernels.quantized import FORMS

__all__ = ["GgufFile", "Metadata"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


_EXPERTS = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight")
_SHARED_GATE = "ffn_gate_inp_shexp.weight"


class GgufFile:
    """A checkpoint in one .gguf file, or in the parts of which this is the first.

    Raises ModelError if it cannot be read or run.
    """

    def __init__(self, path: Path):
        metadata = Metadata(path)
        self._architecture = metadata.architecture
        tensors = {
            tensor.name: tensor
            for place, header in parts_of(path, metadata.header)
            for whole in stored_tensors(place, header)
            for tensor in _matrices(whole)
        }
        # llama.cpp has no such tensor in the other architectures
        divisors = tensors.pop(ROPE_DIVISORS, None) if self._architecture == "llama" else None
        named = {name: huggingface_name(name) for name in tensors}
        self._tensors = {theirs: tensors[name] for name, theirs in named.items() if theirs}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        try:
            self.config = config_from(
                metadata, self.shapes, None if divisors is None else _vector(divisors)
            )
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None
        for name, theirs in named.items():
            if theirs is None:
                raise ModelError(f"{path}: tensor {name} is not part of this model")

    def n_bytes(self, name: str) -> int:
        return math.prod(self._tensors[name].stored_shape)

    def running_bytes(self, name: str) -> int:
        tensor = self._tensors[name]
        runs = tensor.ggml_type.name in _FLOATS or int(tensor.ggml_type) in FORMS
        return self.n_bytes(name) if runs else 2 * math.prod(tensor.shape)

    def method(self, name: str) -> None:
        return None

    def stored(self, name: str) -> Tensor | StoredWeight:
        return self.stored_rows(name, 0, self.shapes[name][0])

    def stored_rows(self, name: str, first: int, last: int) -> Tensor | StoredWeight:
        """Of queries and keys, whole heads."""
        rows = self._tensors[name].read_rows(first, last)
        if self._architecture == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
            if isinstance(rows, StoredWeight):
                return StoredWeight(unpermuted(rows.rows, self.config.head_dim), rows.kind)
            return unpermuted(rows, self.config.head_dim)
        return rows

    def read(self, name: str) -> Tensor:
        return floats(self.stored(name), torch.float32)


@dataclass(frozen=True)
class GgufTensor:
    """One tensor in a file, blocks along the last dimension."""

    name: str
    shape: tuple[int, ...]
    ggml_type: Any
    stored_shape: tuple[int, ...]  # in bytes
    path: Path
    offset: int
    version: Version  # of the file

    def read(self) -> Tensor | StoredWeight:
        """Into memory of its own: whoever writes over the file changes no model that runs."""
        return self.read_rows(0, self.shape[0])

    def read_rows(self, first: int, last: int) -> Tensor | StoredWeight:
        """Rows first .. last - 1, or numbers of a vector."""
        whole, n_rows = math.prod(self.stored_shape), self.shape[0]
        begin, n_bytes = whole * first // n_rows, whole * (last - first) // n_rows
        data = read_bytes(self.path, self.offset + begin, n_bytes, self.version)
        if self.ggml_type.name in _FLOATS:
            return data.view(_FLOATS[self.ggml_type.name]).view(last - first, *self.shape[1:])
        shape = (last - first, *self.stored_shape[1:]) if self.shape[1:] else (n_bytes,)
        return StoredWeight(data.view(shape), int(self.ggml_type))


def _matrices(tensor: GgufTensor) -> Iterator[GgufTensor]:
    """A tensor [E, M, K] of all experts as one of each, blk.3.ffn_up.7.weight; others as they are.

    The gate of a shared expert is a row, which files have without its first dimension.
    """
    name, shape = tensor.name, tensor.shape
    experts = _EXPERTS.fullmatch(name)
    if not experts or len(shape) != 3:
        is_row = name.endswith(_SHARED_GATE) and len(shape) == 1
        yield replace(tensor, shape=(1, *shape)) if is_row else tensor
        return
    if shape[0] > MAX_EXPERTS:
        raise ModelError(f"tensor {name} is of {shape[0]} experts; expected 1 .. {MAX_EXPERTS}")
    rows = tensor.stored_shape[1:]
    for e in range(shape[0]):
        yield replace(
            tensor,
            name=f"{experts[1]}.{e}.weight",
            shape=shape[1:],
            stored_shape=rows,
            offset=tensor.offset + e * math.prod(rows),
        )


def _vector(tensor: GgufTensor) -> Tensor:
    return floats(tensor.read(), torch.float32)


def stored_tensors(path: Path, header: Header) -> Iterator[GgufTensor]:
    """The tensors of a file: each lies in it, in bytes of its own, so it is no larger than that."""
    version, end = version_of(path), header.data_start
    size, *_ = version
    for info in sorted(header.tensors, key=lambda info: info.offset):
        shape = _stored_shape(info)
        first = header.data_start + info.offset
        if first < end:
            raise ModelError(f"{path}: tensor {info.name} overlaps another one")
        end = first + math.prod(shape)
        if end > size:
            raise ModelError(f"{path} is cut short in tensor {info.name}")
        yield GgufTensor(info.name, info.shape, _ggml_type(info), shape, path, first, version)


def _stored_shape(info: TensorInfo) -> tuple[int, ...]:
    """Shape in bytes: blocks lie along the last dimension."""
    from gguf.quants import quant_shape_to_byte_shape

    if not info.shape:
        raise ModelError(f"tensor {info.name} has no dimensions; expected at least one")
    if 0 in info.shape:
        raise ModelError(f"tensor {info.name} of shape {list(info.shape)} is empty")
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


def huggingface_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None for unknown ones.

    An expert's matrix blk.3.ffn_up.7.weight -> model.layers.3.mlp.experts.7.up_proj.weight.
    """
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{kind}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2].startswith("ffn_"):
        part = parts[2].removeprefix("ffn_")
        return f"model.layers.{parts[1]}.mlp.experts.{parts[3]}.{part}_proj.{kind}"
    return None


def unpermuted(rows: Tensor, head_dim: int) -> Tensor:
    """GGUF stores llama's rotary pairs side by side, Hugging Face half a head apart.

    rows: of the weight, or the numbers of the bias, of the queries or the keys.
    """
    pairs = rows.view(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
