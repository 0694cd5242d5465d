"""All layers of a model in one call of our kernels, where they are of the plainest kind.

Whether a model's code does no more than that is tried, not known: see `load.py`.
"""

from typing import Any, NamedTuple

import torch

from runtime.model.backend.fused import GatedMLP, RotaryAttention
from runtime.model.backend.matrix import Matrix
from runtime.model.backend.norms import Norm
from runtime.model.backend.rotary import Rotary
from specedge_kernels import Decoder, DecoderLayer


def as_decoder(body: Any, embedding: Any, head: Any) -> Decoder | None:
    """Its layers as a Decoder; None unless each has one attention, one MLP and a norm before each.

    embedding, head: the weights of both, one and the same where they are tied.
    """
    layers = [_layer(layer) for layer in getattr(body, "layers", ())]
    turns = [part for part in map(_forward, body.modules()) if isinstance(part, Rotary)]
    norm = _forward(getattr(body, "norm", None))
    if not layers or None in layers or len(turns) != 1 or not isinstance(norm, Norm):
        return None
    if not isinstance(embedding, Matrix) or not isinstance(head, Matrix) or head.product is None:
        return None
    parts = [part for part in layers if part is not None]
    if not _are_alike(parts, norm):
        return None
    call = parts[0].attention.paged.call
    cos, sin = turns[0].tables(norm.weight.device)
    half = cos.shape[1] // 2
    return Decoder(
        None if embedding is head else embedding.embedding,
        [part.as_one() for part in parts],
        norm.weight,
        head.product.as_packed(),
        call.n_heads,
        call.shape.n_heads,
        cos,
        torch.cat((-sin[:, :half], sin[:, half:]), -1),
        norm.eps,
    )


class _Layer(NamedTuple):
    attention: RotaryAttention
    mlp: GatedMLP
    norms: list[Norm]

    def as_one(self) -> DecoderLayer:
        return DecoderLayer(
            attention_norm=self.norms[0].weight,
            qkv=self.attention.qkv.as_packed(),
            qk_norm=self.attention.qk_norm,
            output=self.attention.output.as_packed(),
            mlp_norm=self.norms[1].weight,
            gate_up=self.mlp.gate_up.as_packed(),
            down=self.mlp.down.as_packed(),
            window=self.attention.paged.call.window,
        )


def _are_alike(layers: list[_Layer], norm: Norm) -> bool:
    """Whether they differ by no more than what a Decoder's layers may differ by."""
    calls = [layer.attention.paged.call for layer in layers]
    shape = calls[0].shape
    epses = {norm.eps, *(norm.eps for layer in layers for norm in layer.norms)}
    epses |= {layer.attention.eps for layer in layers if layer.attention.qk_norm is not None}
    return len(epses) == 1 and all(
        call.shape == shape
        and call.n_heads == calls[0].n_heads
        and call.softcap == 0
        and abs(call.scale - shape.key_width**-0.5) < 1e-9
        for call in calls
    )


def _layer(layer: Any) -> _Layer | None:
    parts = [_forward(part) for part in layer.children()]
    attentions = [part for part in parts if isinstance(part, RotaryAttention)]
    mlps = [part for part in parts if isinstance(part, GatedMLP)]
    norms = [part for part in parts if isinstance(part, Norm)]
    if (len(parts), len(attentions), len(mlps), len(norms)) != (4, 1, 1, 2):
        return None
    return _Layer(attentions[0], mlps[0], norms)


def _forward(module: Any) -> Any:
    """What was put in place of its class's."""
    return getattr(module, "__dict__", {}).get("forward")
