"""From a checkpoint to a Transformer: every tensor is checked by name and shape, then moved in.

Reads one tensor at a time, so that at most one layer exists twice. Knows nothing of file formats.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.config import ModelConfig, ModelError
from runtime.model.folder import EMBEDDING, HEAD
from runtime.model.transformer import Layer, Linear, Transformer

__all__ = ["ModelError", "expected_shapes", "load"]

Progress = Callable[[int, int], None]  # (done_bytes, total_bytes)

HEAD_IDS, NORM = "head_ids", "model.norm.weight"


def load(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress = lambda done_bytes, total_bytes: None,
) -> Transformer:
    """The model in a Hugging Face folder, a .gguf file, on the hub, or embedded.

    dtype (float32, bfloat16 or float16) is that of the weights. Raises ModelError with a sentence
    for a person: nothing there, a wrong format, an unsupported model, a missing or extra or
    misshaped tensor.
    """
    checkpoint = open_checkpoint(name)
    check_shapes(checkpoint)
    return _Loader(checkpoint, dtype, torch.device(device), progress).transformer()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this model holds, by Hugging Face name."""
    hidden, mlp, depth = config.hidden_size, config.intermediate_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        NORM: (hidden,),
    }
    if not config.tied_embedding:
        shapes[HEAD] = (config.head_size, hidden)
    if config.head_size != config.vocab_size:
        shapes[HEAD_IDS] = (config.head_size,)
    heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    for index in range(config.n_layers):
        layer = f"model.layers.{index}"
        for part, n_heads in heads.items():
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (n_heads * depth, hidden)
            if config.qkv_bias:
                shapes[f"{layer}.self_attn.{part}_proj.bias"] = (n_heads * depth,)
            if config.qk_norm and part != "v":
                shapes[f"{layer}.self_attn.{part}_norm.weight"] = (depth,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.n_heads * depth)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (mlp, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (mlp, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
        if config.output_bias:
            shapes[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        if config.mlp_bias:
            for part, size in {"gate": mlp, "up": mlp, "down": hidden}.items():
                shapes[f"{layer}.mlp.{part}_proj.bias"] = (size,)
    return shapes


def check_shapes(checkpoint: Checkpoint) -> None:
    expected, got = expected_shapes(checkpoint.config), checkpoint.shapes
    for name, shape in expected.items():
        if name not in got:
            raise ModelError(f"tensor {name} is missing; expected shape {list(shape)}")
        if tuple(got[name]) != shape:
            raise ModelError(f"tensor {name} has shape {list(got[name])}; expected {list(shape)}")
    for name, shape in got.items():
        if name not in expected and not _is_redundant(name, checkpoint.config):
            raise ModelError(
                f"tensor {name} of shape {list(shape)} is not part of this model; "
                "expected no such tensor"
            )


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Old checkpoints store rotary frequencies; some store a tied head again."""
    return name.endswith("rotary_emb.inv_freq") or (name == HEAD and config.tied_embedding)


class _Loader:
    """Reads tensors in order, counts their bytes, and puts them together."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress
    ):
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.dtype, self.device, self.progress = dtype, device, progress
        # what the transformer computes in: see transformer.py
        self.activation_dtype = torch.float32 if device.type == "cpu" else dtype
        self.names = expected_shapes(self.config).keys()
        self.done_bytes, self.total_bytes = 0, sum(map(checkpoint.n_bytes, self.names))

    def transformer(self) -> Transformer:
        config = self.config
        layers = [self._layer(f"model.layers.{index}") for index in range(config.n_layers)]
        tied = config.tied_embedding
        head_ids = None
        if config.head_size != config.vocab_size:
            head_ids = self._read(HEAD_IDS).to(self.device, torch.int64)
        return Transformer(
            config,
            embedding=None if tied else self._weight(EMBEDDING),
            layers=layers,
            norm=self._vector(NORM),
            head=Linear(self._weight(EMBEDDING if tied else HEAD)),
            head_ids=head_ids,
        )

    def _layer(self, name: str) -> Layer:
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        return Layer(
            attention_norm=self._vector(f"{name}.input_layernorm.weight"),
            qkv=self._linear(*(f"{attention}.{part}_proj" for part in "qkv")),
            qk_norm=self._qk_norm(attention) if self.config.qk_norm else None,
            output=self._linear(f"{attention}.o_proj"),
            mlp_norm=self._vector(f"{name}.post_attention_layernorm.weight"),
            gate_up=self._linear(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=self._linear(f"{mlp}.down_proj"),
        )

    def _linear(self, *names: str) -> Linear:
        """One product for all projections of the same input, their rows one after the other."""
        bias = None
        if f"{names[0]}.bias" in self.names:
            bias = torch.cat([self._vector(f"{name}.bias") for name in names])
        return Linear(torch.cat([self._weight(f"{name}.weight") for name in names]), bias)

    def _qk_norm(self, attention: str) -> Tensor:
        q, k = (self._vector(f"{attention}.{part}_norm.weight") for part in "qk")
        return torch.cat((q.expand(self.config.n_heads, -1), k.expand(self.config.n_kv_heads, -1)))

    def _weight(self, name: str) -> Tensor:
        return self._read(name).to(self.device, self.dtype)

    def _vector(self, name: str) -> Tensor:
        return self._read(name).to(self.device, self.activation_dtype)

    def _read(self, name: str) -> Tensor:
        tensor = self.checkpoint.read(name)
        self.done_bytes += self.checkpoint.n_bytes(name)
        self.progress(self.done_bytes, self.total_bytes)
        return tensor
