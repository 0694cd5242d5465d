"""One transformer for every family; they differ by data only.

Runs rows of tokens against a paged KV cache. Knows nothing of requests, pages or files.

On the CPU every row's result is the same to the last bit however many rows share the pass, and
that is what makes speculation lossless there: all ops come from specedge_kernels, which sum in a
fixed order, and activations are float32 whatever the type of the weights. Layers run as one call
there, with the bits of the ops one by one, if none has a shared expert and no row of the pass an
adapter.
On a CUDA device activations have the model's dtype, and the same holds with batch_invariant.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from runtime.model.batch import MAX_TREE_NODES, AdaptedRows, TreeBatch
from runtime.model.config import ModelConfig
from runtime.model.kv_cache import PagedKV
from runtime.model.parallel import Ranks
from runtime.model.rope import rope_tables
from specedge_kernels import (
    Decoder,
    DecoderLayer,
    PackedLinear,
    PackedRouter,
    QuantizedWeight,
    StoredWeight,
    dequantize,
    linear,
    pack_linear,
    quantized_linear,
    rms_norm,
    rope_append_kv,
    silu_mul,
    tree_attention,
)
from specedge_kernels.reference import unpack_rows


class Linear:
    """x [N, K] -> [N, M]. On a CPU the weights are repacked into the kernels' panels at once.

    exact: on a CPU the inputs of quantised weights are not rounded to 8 bits; on a GPU they never
    are. batch_invariant: a row's bits do not depend on its batch, which only the products of floats
    on a GPU can do without, by torch's own. added: what adapters add to the result of the rows that
    have one (adapted.py).
    """

    def __init__(
        self,
        weight: Tensor | QuantizedWeight,
        bias: Tensor | None = None,
        exact: bool = False,
        batch_invariant: bool = True,
    ):
        self.bias, self.exact = bias, exact
        self.added: Callable[[Tensor, Tensor, AdaptedRows], None] | None = None
        self.weight: Tensor | QuantizedWeight
        if isinstance(weight, QuantizedWeight):
            self.by_torch, self.out_features, self.weight = False, weight.out_features, weight
        else:
            self.by_torch = weight.device.type != "cpu" and not batch_invariant
            self.out_features = weight.shape[0]
            self.weight = weight if self.by_torch else pack_linear(weight)

    def __call__(self, x: Tensor, adapted: AdaptedRows | None = None) -> Tensor:
        out = self._product(x)
        if adapted is not None and self.added is not None:
            self.added(out, x, adapted)
        return out

    def _product(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, QuantizedWeight):
            return quantized_linear(x, self.weight, exact=self.exact, bias=self.bias)
        if self.by_torch:
            return F.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.out_features, self.bias)

    def as_packed(self) -> PackedLinear:
        """The same on a CPU, as `Decoder` takes it."""
        return PackedLinear(self.weight, self.out_features, self.bias, self.exact)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the weight, [len(ids), K]: a tied embedding needs no copy of its own."""
        if isinstance(self.weight, QuantizedWeight):
            return unpack_rows(self.weight, ids)
        if self.weight.dim() == 2:
            return self.weight[ids]
        width = self.weight.shape[2]
        return self.weight[ids // width, :, ids % width]


class Product(NamedTuple):
    """A product of a layer, by the modules of the checkpoint that it computes."""

    linear: Linear
    outputs: Mapping[str, int]  # of each module in turn, as many as are computed here


def as_it_is(x: Tensor) -> Tensor:
    """What is whole already, as nobody shares the model."""
    return x


class PackedMlp(NamedTuple):
    """The MLP of a layer on a CPU, as `Decoder` takes it; with a router, the experts."""

    gate_up: PackedLinear
    down: PackedLinear
    router: PackedRouter | None = None


class Mlp(Protocol):
    """x [N, H] -> [N, H]: a GatedMlp, or a mixture of experts."""

    def __call__(self, x: Tensor, adapted: AdaptedRows | None = None) -> Tensor: ...

    def as_packed(self) -> PackedMlp | None:
        """None where one call does not do all that it does."""
        ...


@dataclass(frozen=True)
class GatedMlp:
    """x [N, H] -> [N, H].

    whole: from this rank's columns of an output to those of all, see parallel.py.
    """

    gate_up: Linear  # H -> 2 I
    down: Linear  # I -> H
    whole: Callable[[Tensor], Tensor] = as_it_is

    def __call__(self, x: Tensor, adapted: AdaptedRows | None = None) -> Tensor:
        inner = self.whole(silu_mul(self.gate_up(x, adapted)))
        return self.whole(self.down(inner, adapted))

    def as_packed(self) -> PackedMlp:
        return PackedMlp(self.gate_up.as_packed(), self.down.as_packed())


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; projections that read the same input are one product."""

    attention_norm: Tensor  # [H]
    qkv: Linear
    qk_norm: Tensor | None  # [Hq + Hk, D]
    output: Linear
    mlp_norm: Tensor  # [H]
    mlp: Mlp


class Transformer:
    """Embedding, layers and output head. `embedding` is None where it is tied to the head.

    On a CPU it may be quantised; rows are decoded as they are looked up.

    head_ids [head_size] i64 names the token of each logit, None where column t is token t.
    products: those that adapters can be beside; adapters: the names of those that rows may ask for,
    put there by `adapted.adapt`.
    ranks: those that share the model; `config` then has this one's heads, and logits are of its
    part of the vocabulary.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor | StoredWeight | None,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Linear,
        head_ids: Tensor | None = None,
        batch_invariant: bool = True,
        ranks: Ranks | None = None,
        products: Sequence[Product] = (),
    ):
        self.products = products
        self.config, self.layers = config, layers
        self.ranks, self.whole = ranks, as_it_is if ranks is None else ranks.whole
        self.embedding, self.norm, self.head, self.head_ids = embedding, norm, head, head_ids
        self.adapters: tuple[str, ...] = ()
        self.device = norm.device
        # float32 on the CPU, the weights' own dtype elsewhere: norms are loaded that way
        self.dtype = norm.dtype
        self.kv_shapes = config.kv_shapes
        self.vocab_size, self.head_size = config.vocab_size, config.head_size
        self.max_context = config.max_context
        cos, sin = rope_tables(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            config.max_context + MAX_TREE_NODES,
        )
        self.n_positions = len(cos)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)
        self.batch_invariant = batch_invariant
        self.decoder = self._decoder() if self.device.type == "cpu" and ranks is None else None

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        """Hidden states [R, H] before the last norm of the wanted rows; writes all rows' KV.

        Nothing here waits for the device, so a pass can be captured in a
        CUDA graph.
        """
        if self.decoder is None or batch.adapted is not None:
            return self._op_by_op(batch, kv)
        return self._fused(batch, kv)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R, head_size] float32 of rows of hidden states [R, H], or a rank's columns."""
        if self.decoder is not None:
            return self.decoder.logits(hidden)
        return self.head(self._rms_norm(hidden, self.norm)).float()

    def _embed(self, tokens: Tensor) -> Tensor:
        if self.ranks is None:
            return self._rows(tokens)
        return self.ranks.looked_up(tokens, self.vocab_size, self._rows)

    def _rows(self, tokens: Tensor) -> Tensor:
        if self.embedding is None:
            return self.head.rows(tokens).to(self.dtype)
        if isinstance(self.embedding, StoredWeight):
            return dequantize(self.embedding.rows[tokens], self.embedding.kind)
        return self.embedding[tokens].to(self.dtype)

    def _op_by_op(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        x, last = self._embed(batch.tokens), len(self.layers) - 1  # x [N, H]
        delta: Tensor | None = None  # what is still to be added to x
        adapted = batch.adapted
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, kv.layers, strict=True)):
            normed = self._rms_norm(x, layer.attention_norm, delta)
            mixed = self._attention(layer, normed, batch, keys, values, index)
            if index == last and batch.wanted is not None:
                x, mixed, adapted = x[batch.wanted], mixed[batch.wanted], batch.adapted_wanted
            attended = self.whole(layer.output(self.whole(mixed), adapted))
            normed = self._rms_norm(x, layer.mlp_norm, attended)
            delta = layer.mlp(normed, adapted)
        assert delta is not None, "a model has layers"
        return x.add_(delta)

    def _rms_norm(self, x: Tensor, weight: Tensor, delta: Tensor | None = None) -> Tensor:
        """The norm of x + delta, to which x is set."""
        return rms_norm(x, weight, self.config.rms_norm_eps, delta)

    def _attention(
        self,
        layer: Layer,
        x: Tensor,
        batch: TreeBatch,
        keys: Tensor,
        values: Tensor,
        index: int,
    ) -> Tensor:
        """What the heads see, [N, Hq D], of normed x."""
        config = self.config
        heads = config.n_heads + 2 * config.n_kv_heads
        q = rope_append_kv(
            layer.qkv(x, batch.adapted).view(-1, heads, config.head_dim),
            layer.qk_norm,
            self.cos,
            self.sin,
            batch.positions,
            keys,
            values,
            batch.slots,
            eps=config.rms_norm_eps,
        )
        mixed = tree_attention(
            q,
            keys,
            values,
            batch.page_table,
            batch.prefix_lens,
            batch.n_nodes,
            batch.offsets,
            batch.ancestors,
            batch.depth,
            scale=config.head_dim**-0.5,
            window=config.window(index),
            batch_invariant=self.batch_invariant,
        )  # [N, Hq, D]
        assert isinstance(mixed, Tensor), "asked for no lse"
        return mixed.flatten(1)

    def _fused(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        assert self.decoder is not None
        (pool,) = kv.pools  # all layers have one shape
        return self.decoder(
            batch.tokens,
            batch.positions,
            batch.slots,
            batch.page_table,
            batch.prefix_lens,
            batch.n_nodes,
            batch.offsets,
            batch.ancestors,
            batch.depth,
            pool,
            batch.wanted,
        )

    def _decoder(self) -> Decoder | None:
        config = self.config
        mlps = [mlp for layer in self.layers if (mlp := layer.mlp.as_packed()) is not None]
        if len(mlps) < len(self.layers):
            return None
        layers = [
            DecoderLayer(
                attention_norm=layer.attention_norm,
                qkv=layer.qkv.as_packed(),
                qk_norm=layer.qk_norm,
                output=layer.output.as_packed(),
                mlp_norm=layer.mlp_norm,
                gate_up=mlp.gate_up,
                down=mlp.down,
                window=config.window(index),
                router=mlp.router,
            )
            for index, (layer, mlp) in enumerate(zip(self.layers, mlps, strict=True))
        ]
        ends = self.embedding, layers, self.norm, self.head.as_packed()
        return Decoder(
            *ends, config.n_heads, config.n_kv_heads, self.cos, self.sin, config.rms_norm_eps
        )
