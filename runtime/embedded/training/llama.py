"""A llama forward pass for whole conversations, for scoring with the target and training a draft.

Every conversation starts with the same template tokens, so these run once per batch and all rows
attend to them. There is no cache and no sampling here: the runtime's own model serves requests.

Letters: C hidden size, P prefix tokens, B conversations, T tokens of each after the prefix.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from gguf.quants import dequantize
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from runtime.embedded.training.arithmetic import COMPUTE

Weights = dict[str, Tensor]
Rope = tuple[Tensor, Tensor]

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Shape:
    """The numbers of a llama model that its forward pass needs."""

    layers: int
    hidden: int = 576
    mlp: int = 1536
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    rope_theta: float = 1e5
    norm_eps: float = 1e-5


def read_gguf(path: Path) -> tuple[Shape, Weights]:
    """Shape and fp32 weights of a llama GGUF, under the tensor names of Hugging Face."""
    reader = gguf.GGUFReader(path)

    def field(name: str) -> float:
        return float(reader.fields[f"llama.{name}"].contents())

    shape = Shape(
        layers=int(field("block_count")),
        hidden=int(field("embedding_length")),
        mlp=int(field("feed_forward_length")),
        heads=int(field("attention.head_count")),
        kv_heads=int(field("attention.head_count_kv")),
        head_dim=int(field("embedding_length")) // int(field("attention.head_count")),
        rope_theta=float(field("rope.freq_base")),
        norm_eps=float(field("attention.layer_norm_rms_epsilon")),
    )
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _unpermute(values, shape.head_dim)
        weights[_hf_name(tensor.name)] = values.float()
    return shape, weights


def _hf_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"


def _unpermute(weight: Tensor, head_dim: int) -> Tensor:
    """GGUF stores rotary pairs next to each other; Hugging Face stores them half a head apart."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x scaled to unit root mean square over its last axis, times weight, in fp32."""
    return torch.rms_norm(x, (x.shape[-1],), weight, eps)


def _rope(positions: Tensor, shape: Shape, dtype: torch.dtype) -> Rope:
    powers = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = positions.float()[:, None] * shape.rope_theta**-powers
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)  # [tokens, 1, head_dim] each


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Llama:
    """The decoder stack over named weights; weights may be leaves that need gradients."""

    def __init__(self, shape: Shape, weights: Weights, compute: torch.dtype = COMPUTE):
        self.shape, self.weights, self.compute = shape, weights, compute

    def hidden(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """Final normed states [B, T, C] in fp32 of ids [B, T] that each follow prefix [P].

        Rows may be padded on the right: attention is causal, so padding changes no other state.
        """
        B, T = ids.shape
        positions = torch.cat([torch.arange(len(prefix)), torch.arange(T).repeat(B) + len(prefix)])
        rope = _rope(positions, self.shape, self.compute)
        x = self.weights["model.embed_tokens.weight"][torch.cat([prefix, ids.flatten()])].float()
        for layer in range(self.shape.layers):
            x = x + self._attention(f"model.layers.{layer}.", x, rope, len(prefix), B)
            x = x + self._mlp(f"model.layers.{layer}.", x)
        x = rms_norm(x[len(prefix) :], self.weights["model.norm.weight"], self.shape.norm_eps)
        return x.view(B, T, -1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"].to(self.compute))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return rms_norm(x, weight, self.shape.norm_eps).to(self.compute)

    def _mlp(self, at: str, x: Tensor) -> Tensor:
        x = self._norm(at + "post_attention_layernorm", x)
        gate = silu(self._linear(at + "mlp.gate_proj", x))
        return self._linear(at + "mlp.down_proj", gate * self._linear(at + "mlp.up_proj", x))

    def _attention(self, at: str, x: Tensor, rope: Rope, P: int, B: int) -> Tensor:
        x, s = self._norm(at + "input_layernorm", x), self.shape
        q = self._linear(at + "self_attn.q_proj", x).view(-1, s.heads, s.head_dim)
        k = self._linear(at + "self_attn.k_proj", x).view(-1, s.kv_heads, s.head_dim)
        v = self._linear(at + "self_attn.v_proj", x).view(-1, s.kv_heads, s.head_dim)
        q, k = _rotate(q, rope), _rotate(k, rope)
        mixed = torch.cat(
            [_attend(q[:P], k[:P], v[:P], None, 1), _attend(q[P:], k[P:], v[P:], (k[:P], v[:P]), B)]
        )
        return self._linear(at + "self_attn.o_proj", mixed)


def _attend(q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None, B: int) -> Tensor:
    """Causal attention of B equal rows, flat in q, k and v, after a past that the rows share."""

    def rows(x: Tensor) -> Tensor:
        return x.view(B, -1, *x.shape[1:]).transpose(1, 2)  # [B, heads, T, head_dim]

    group = q.shape[1] // k.shape[1]
    q, k, v = rows(q), rows(k), rows(v)
    mask = None
    if past is not None:
        k, v = (
            torch.cat([old.transpose(0, 1).expand(B, -1, -1, -1), new], dim=2)
            for old, new in zip(past, (k, v), strict=True)
        )
        T, S = q.shape[2], k.shape[2]
        mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.transpose(1, 2).reshape(B * q.shape[2], -1)
