"""One transformer for every family; llama, mistral, qwen2 and qwen3 differ by data only.

Runs rows of tokens against a paged KV cache. Knows nothing of requests, pages or files.

On the CPU every row's result is the same to the last bit however many rows share the pass, and
that is what makes speculation lossless there: products and attention come from specedge_kernels,
which sum in a fixed order, and activations stay float32 whatever the dtype of the weights. On a
CUDA device activations have the model's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from runtime.model.batch import MAX_TREE_NODES, TreeBatch
from runtime.model.config import ModelConfig
from runtime.model.rope import rope_tables
from specedge_kernels import (
    linear,
    pack_linear,
    rms_norm,
    rope_append_kv,
    silu_mul,
    tree_attention,
)


class Linear:
    """x [N, K] -> [N, M]. On the CPU the weights are repacked into the kernels' panels at once."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.out_features = weight.shape[0]
        self.packed = weight.device.type == "cpu"
        self.weight = pack_linear(weight) if self.packed else weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        out = linear(x, self.weight, self.out_features)
        return out if self.bias is None else out.add_(self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), K]: a tied embedding needs no copy of its own."""
        if not self.packed:
            return self.weight[ids]
        width = self.weight.shape[2]
        return self.weight[ids // width, :, ids % width]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; projections that read the same input are one product."""

    attention_norm: Tensor  # [H]
    qkv: Linear
    qk_norm: Tensor | None  # [Hq + Hk, D]
    output: Linear
    mlp_norm: Tensor  # [H]
    gate_up: Linear
    down: Linear


class Transformer:
    """Embedding, layers and output head. `embedding` is None where it is tied to the head.

    head_ids [head_size] i64 names the token of each logit, None where column t is token t.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor | None,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Linear,
        head_ids: Tensor | None = None,
    ):
        self.config, self.layers = config, layers
        self.embedding, self.norm, self.head, self.head_ids = embedding, norm, head, head_ids
        self.device = norm.device
        # float32 on the CPU, the weights' own dtype elsewhere: norms are loaded that way
        self.dtype = norm.dtype
        cos, sin = rope_tables(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.max_context + MAX_TREE_NODES,
        )
        self.n_positions = len(cos)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)

    def forward(self, batch: TreeBatch, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Hidden states [N, H] before the last norm; writes the new nodes' keys and values.

        caches: for each layer the keys and the values, [P, S, Hk, D] each. Nothing here waits
        for the device, so a pass can be captured in a CUDA graph.
        """
        x = self._embed(batch.tokens)  # [N, H]
        delta = None  # what is still to be added to x
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            normed = self._rms_norm(x, layer.attention_norm, delta)
            delta = self._attention(layer, normed, batch, cache, index)
            normed = self._rms_norm(x, layer.mlp_norm, delta)
            delta = layer.down(silu_mul(layer.gate_up(normed)))
        return x if delta is None else x.add_(delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H]."""
        return self.head(self._rms_norm(hidden, self.norm)).float()

    def _embed(self, tokens: Tensor) -> Tensor:
        rows = self.head.rows(tokens) if self.embedding is None else self.embedding[tokens]
        return rows.to(self.dtype)

    def _rms_norm(self, x: Tensor, weight: Tensor, delta: Tensor | None = None) -> Tensor:
        """The norm of x + delta, to which x is set."""
        return rms_norm(x, weight, self.config.rms_norm_eps, delta)

    def _attention(
        self,
        layer: Layer,
        x: Tensor,
        batch: TreeBatch,
        cache: tuple[Tensor, Tensor],
        index: int,
    ) -> Tensor:
        config = self.config
        heads = config.n_heads + 2 * config.n_kv_heads
        q = rope_append_kv(
            layer.qkv(x).view(-1, heads, config.head_dim),
            layer.qk_norm,
            self.cos,
            self.sin,
            batch.positions,
            *cache,
            batch.slots,
            eps=config.rms_norm_eps,
        )
        mixed = tree_attention(
            q,
            *cache,
            batch.page_table,
            batch.prefix_lens,
            batch.n_nodes,
            batch.offsets,
            batch.ancestors,
            batch.depth,
            scale=config.head_dim**-0.5,
            window=config.window(index),
        )  # [N, Hq, D]
        return layer.output(mixed.flatten(1))
