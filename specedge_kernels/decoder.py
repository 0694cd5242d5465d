"""A step of a decoder-only transformer of the llama kind in one call, on a CPU.

It is made of the public ops; `runtime/model/transformer.py` calls them one after another. One call
gives the same bits and spends little beside the products: its arguments are checked once. Knows no
files and not whose rows they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specedge_kernels import _cpu
from specedge_kernels.cpu import DTYPES, cache_of, linear_of, quantized_of
from specedge_kernels.ops import (
    CACHED,
    FLOATS,
    PANEL,
    _check,
    _check_count,
    _check_eps,
    _check_quantized,
    _check_stored,
    _check_tensors,
    _expect,
)
from specedge_kernels.quantized import QuantizedWeight, StoredWeight


@dataclass(frozen=True)
class PackedLinear:
    """Panels [ceil(M / 64), K, 64] from `pack_linear` or a packed quantised weight; M; its bias.

    bias [M] float32; exact as for `quantized_linear`.
    """

    weight: Tensor | QuantizedWeight
    out_features: int
    bias: Tensor | None = None
    exact: bool = False

    @property
    def in_features(self) -> int:
        if isinstance(self.weight, QuantizedWeight):
            return self.weight.in_features
        return self.weight.shape[-2]


@dataclass(frozen=True)
class PackedRouter:
    """What chooses k experts for a row: `route` of what the linear H -> E gives, by softmax."""

    linear: PackedLinear
    k: int
    normalise: bool


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of one layer; vectors are float32. window as for `tree_attention`.

    With a router, gate_up and down have E sets of weights and no bias, as `grouped_linear` and
    `grouped_quantized_linear` take them.
    """

    attention_norm: Tensor  # [H]
    qkv: PackedLinear  # H -> (Hq + 2 Hk) D
    qk_norm: Tensor | None  # [Hq + Hk, D]
    output: PackedLinear  # Hq D -> H
    mlp_norm: Tensor  # [H]
    gate_up: PackedLinear  # H -> 2 I
    down: PackedLinear  # I -> H
    window: int
    router: PackedRouter | None = None


class Decoder:
    """L >= 1 layers with Hq query heads and Hk key/value heads of size D, between two ends.

    embedding [V, H] float32, bfloat16, float16 or a StoredWeight, None where it is the head's
    weights; norm [H] float32, before the head H -> V or fewer. cos, sin [C, D] float32 as for
    `rope_append_kv`, eps of all norms. Attention is scaled by 1 / sqrt(D). Raises ValueError for
    tensors of another shape, type or device than a CPU's, and for those that gradients are wanted
    for: it has none.
    """

    def __init__(
        self,
        embedding: Tensor | StoredWeight | None,
        layers: Sequence[DecoderLayer],
        norm: Tensor,
        head: PackedLinear,
        n_heads: int,
        n_kv_heads: int,
        cos: Tensor,
        sin: Tensor,
        eps: float,
    ):
        _expect_cpu(cos, sin, norm)
        _check_eps(eps)
        _check("cos", cos, torch.float32, (None, None))
        _check("sin", sin, torch.float32, tuple(cos.shape))
        _expect(len(layers) >= 1, "layers", "at least one", "none")
        _expect(0 < n_kv_heads <= n_heads, "n_kv_heads", f"1 .. {n_heads}", n_kv_heads)
        _expect(n_heads % n_kv_heads == 0, "n_heads", f"a multiple of {n_kv_heads}", n_heads)
        _expect(cos.shape[1] % 2 == 0, "cos", "an even D", cos.shape[1])
        _check("norm", norm, torch.float32, (None,))
        hidden, dim = norm.shape[0], cos.shape[1]
        # C++ holds their addresses.
        self._tensors = embedding, layers, norm, head, cos, sin
        self._shape = len(layers), n_kv_heads, dim  # L, Hk, D
        self._hidden, self._head_size = hidden, head.out_features
        self._decoder = _cpu.Decoder(
            *(hidden, n_heads, n_kv_heads, dim, eps, dim**-0.5),
            *(cos.data_ptr(), sin.data_ptr(), len(cos)),
            *_table(embedding, hidden, head.out_features),
            norm.data_ptr(),
            _linear("head", head, hidden, head.out_features),
        )
        for layer in layers:
            self._add(layer, n_heads, n_kv_heads, dim)

    def _add(self, layer: DecoderLayer, n_heads: int, n_kv_heads: int, dim: int) -> None:
        hidden, inner, router = self._hidden, layer.down.in_features, layer.router
        n_sets = None if router is None else router.linear.out_features
        _check_count("window", layer.window, -1)
        norms = () if layer.qk_norm is None else (layer.qk_norm,)
        _expect_cpu(layer.attention_norm, layer.mlp_norm, *norms)
        _check("attention_norm", layer.attention_norm, torch.float32, (hidden,))
        _check("mlp_norm", layer.mlp_norm, torch.float32, (hidden,))
        if layer.qk_norm is not None:
            _check("qk_norm", layer.qk_norm, torch.float32, (n_heads + n_kv_heads, dim))
        self._decoder.add_layer(
            layer.attention_norm.data_ptr(),
            _linear("qkv", layer.qkv, hidden, (n_heads + 2 * n_kv_heads) * dim),
            0 if layer.qk_norm is None else layer.qk_norm.data_ptr(),
            _linear("output", layer.output, n_heads * dim, hidden),
            layer.mlp_norm.data_ptr(),
            _linear("gate_up", layer.gate_up, hidden, 2 * inner, n_sets),
            _linear("down", layer.down, inner, hidden, n_sets),
            inner,
            layer.window,
            None if router is None else _router(router, hidden),
        )

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        page_table: Tensor,
        prefix_lens: Tensor,
        n_nodes: Tensor,
        offsets: Tensor,
        ancestors: Tensor,
        depth: Tensor,
        kv: Tensor,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last layer of the wanted rows, [R, H] float32.

        tokens [N] int64 in 0 .. V-1; positions and slots [N] int64 as for `rope_append_kv`; the
        tables as for `tree_attention`; kv [L, 2, P, S, Hk, D] float32, bfloat16, float16 or
        float8_e4m3fn with D contiguous, into which the keys and values of all rows go; wanted [R]
        int64 are rows, None all of them. Raises ValueError for wrong metadata or values, before
        anything is written.
        """
        tables = (page_table, prefix_lens, n_nodes, offsets, ancestors, depth)
        chosen = () if wanted is None else (wanted,)
        _expect_cpu(tokens, positions, slots, *tables, kv, *chosen)
        _check("tokens", tokens, torch.int64, (None,))
        _check("prefix_lens", prefix_lens, torch.int32, (None,))
        rows, batch = tokens.shape[0], prefix_lens.shape[0]
        _check("positions", positions, torch.int64, (rows,))
        _check("slots", slots, torch.int64, (rows,))
        _check("page_table", page_table, torch.int32, (batch, None))
        _check("n_nodes", n_nodes, torch.int32, (batch,))
        _check("offsets", offsets, torch.int32, (batch + 1,))
        _check("ancestors", ancestors, torch.int64, (rows, None))
        _check("depth", depth, torch.int32, (rows,))
        self._check_kv(kv)
        n_wanted = rows
        if wanted is not None:
            _check("wanted", wanted, torch.int64, (None,))
            n_wanted = wanted.shape[0]
        out = torch.empty(n_wanted, self._hidden)
        _cpu.decode(
            self._decoder,
            _cpu.LayeredCache(cache_of(kv[0, 0]), *kv.stride()[:2]),
            tokens.data_ptr(),
            rows,
            positions.data_ptr(),
            slots.data_ptr(),
            batch,
            ancestors.shape[1],
            page_table.shape[1],
            page_table.data_ptr(),
            prefix_lens.data_ptr(),
            n_nodes.data_ptr(),
            offsets.data_ptr(),
            ancestors.data_ptr(),
            depth.data_ptr(),
            0 if wanted is None else wanted.data_ptr(),
            n_wanted,
            out.data_ptr(),
        )
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's outputs [R, M] float32 for hidden states [R, H] float32, normed first."""
        _expect_cpu(hidden)
        _check("hidden", hidden, torch.float32, (None, self._hidden))
        out = torch.empty(hidden.shape[0], self._head_size)
        _cpu.logits(self._decoder, hidden.data_ptr(), hidden.shape[0], out.data_ptr())
        return out

    def _check_kv(self, kv: Tensor) -> None:
        layers, heads, dim = self._shape
        fits = (
            kv.dim() == 6
            and (kv.shape[0], kv.shape[1], kv.shape[4], kv.shape[5]) == (layers, 2, heads, dim)
            and kv.shape[3] >= 1
            and kv.stride(5) == 1
            and kv.dtype in CACHED
        )
        expected = f"a cache [{layers}, 2, P, S, {heads}, {dim}] with D contiguous"
        _expect(fits, "kv", expected, f"{kv.dtype} {list(kv.shape)}, strides {list(kv.stride())}")


def _expect_cpu(*tensors: Tensor) -> None:
    _check_tensors("decoder", *tensors)
    for tensor in tensors:
        _expect(tensor.device.type == "cpu", "decoder", "tensors on cpu", tensor.device)


def _table(
    embedding: Tensor | StoredWeight | None, hidden: int, outputs: int
) -> tuple[int, _cpu.Dtype | _cpu.Quant, int]:
    """The embedding as C++ sees it: its address, type and rows, which may be those of the head."""
    if embedding is None:
        return 0, _cpu.Dtype.float32, outputs
    if isinstance(embedding, StoredWeight):
        _expect_cpu(embedding.rows)
        inputs = _check_stored(embedding.rows, embedding.kind)
        _expect(inputs == hidden, "embedding", f"rows of {hidden}", inputs)
        return embedding.rows.data_ptr(), _cpu.Quant(embedding.kind), len(embedding.rows)
    _expect_cpu(embedding)
    _check("embedding", embedding, FLOATS, (None, hidden))
    return embedding.data_ptr(), DTYPES[embedding.dtype], len(embedding)


def _router(router: PackedRouter, hidden: int) -> _cpu.Router:
    n_experts = router.linear.out_features
    _expect(1 <= router.k <= n_experts, "k", f"1 .. {n_experts}", router.k)
    linear = _linear("router", router.linear, hidden, n_experts)
    return _cpu.Router(linear, n_experts, router.k, router.normalise)


def _linear(
    name: str, linear: PackedLinear, inputs: int, outputs: int, n_sets: int | None = None
) -> _cpu.Linear:
    """n_sets: how many sets of weights it has, one behind the other; None for one by itself."""
    sets = () if n_sets is None else (n_sets,)
    _expect(linear.out_features == outputs, name, f"{outputs} outputs", linear.out_features)
    _expect(linear.bias is None or not sets, f"bias of {name}", "none for sets", "one")
    if linear.bias is not None:
        _expect_cpu(linear.bias)
        _check(f"bias of {name}", linear.bias, torch.float32, (outputs,))
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        _expect_cpu(weight.packed)
        _check_quantized(weight, sets)
        got = weight.in_features, weight.out_features
        _expect(got == (inputs, outputs), name, f"{inputs} inputs, {outputs} outputs", got)
        return quantized_of(weight, linear.exact, linear.bias)
    _expect_cpu(weight)
    _check(name, weight, FLOATS, (*sets, -(-outputs // PANEL), inputs, PANEL))
    return linear_of(weight, outputs, linear.bias)
