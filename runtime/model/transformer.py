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
from runtime.model.rope import rope_tables, rotate
from specedge_kernels import append_kv, linear, pack_linear, tree_attention

# torch spreads an elementwise op over threads from this many elements on
TORCH_GRAIN = 32768


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
        self.cos = cos.to(self.device, self.dtype)
        self.sin = sin.to(self.device, self.dtype)

    def forward(self, batch: TreeBatch, caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Hidden states [N, H] before the last norm; writes the new nodes' keys and values.

        caches: for each layer the keys and the values, [P, S, Hk, D] each. Nothing here waits
        for the device, so a pass can be captured in a CUDA graph.
        """
        x = self._embed(batch.tokens)  # [N, H]
        rope = (self.cos[batch.positions][:, None], self.sin[batch.positions][:, None])
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x += self._attention(
                layer, self._rms_norm(x, layer.attention_norm), rope, batch, cache, index
            )
            x += self._mlp(layer, self._rms_norm(x, layer.mlp_norm))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H]."""
        return self.head(self._rms_norm(hidden, self.norm)).float()

    def _embed(self, tokens: Tensor) -> Tensor:
        rows = self.head.rows(tokens) if self.embedding is None else self.embedding[tokens]
        return rows.to(self.dtype)

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.config.rms_norm_eps)

    def _attention(
        self,
        layer: Layer,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        batch: TreeBatch,
        cache: tuple[Tensor, Tensor],
        index: int,
    ) -> Tensor:
        config = self.config
        n_q, n_k = config.n_heads, config.n_kv_heads
        qkv = layer.qkv(x).view(-1, n_q + 2 * n_k, config.head_dim)
        qk, v = qkv[:, : n_q + n_k], qkv[:, n_q + n_k :]
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], eps=config.rms_norm_eps) * layer.qk_norm
        qk = rotate(qk, *rope)
        q, k = qk[:, :n_q], qk[:, n_q:]
        append_kv(k.contiguous(), v.contiguous(), *cache, batch.slots)
        mixed = tree_attention(
            q.contiguous(),
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

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        # On the CPU torch computes exp by vector in the body of a thread's share and by scalar in
        # its tail, with other bits: shares must end where rows end, so no op may be shared out.
        share = max(1, (TORCH_GRAIN - 1) // gate.shape[1]) if gate.is_cpu else len(gate)
        for first in range(0, len(gate), share):
            F.silu(gate[first : first + share], inplace=True)
        return layer.down(gate * up)
