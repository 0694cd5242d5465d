"""Attention and MLP of the common kinds in a few calls of our kernels, in place of many of torch's.

Which modules are of these kinds no list says: each is copied with small random weights, and taken
only if the copy computes what ours would. Their projections of one input are then one product.
"""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.backend.attention import PLACE, AttentionCall, PagedAttention, Pass
from runtime.model.backend.norms import Norm, as_norm
from runtime.model.backend.skeleton import Skeleton
from runtime.model.transformer import Linear
from runtime.model.weights import Reader
from specedge_kernels import rope_append_kv, silu_mul

_WIDTH, _ROWS = 8, 3  # of the copies
_TOLERANCE = 1e-4
_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


class GatedMLP:
    """x [..., H] -> [..., H]: down(silu(gate(x)) * up(x)), in a pass that is running."""

    def __init__(self, gate_up: Linear, down: Linear, running: Pass):
        self.gate_up, self.down, self.running = gate_up, down, running

    def __call__(self, x: Tensor) -> Tensor:
        rows, adapted = x.reshape(-1, x.shape[-1]), self.running.adapted
        return self.down(silu_mul(self.gate_up(rows, adapted)), adapted).view(x.shape)


class RotaryAttention:
    """Projections, norms of heads if there are any, rotary positions, attention, projection.

    qk_norm [Hq + Hk, D]: weights of the norms, with eps.
    """

    def __init__(
        self, qkv: Linear, output: Linear, qk_norm: Tensor | None, eps: float, paged: PagedAttention
    ):
        self.qkv, self.output, self.qk_norm, self.eps = qkv, output, qk_norm, eps
        self.paged = paged
        self._heads = paged.call.n_heads + 2 * paged.call.shape.n_heads

    def __call__(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        """The parameters' names are transformers': cos and sin are [1, N, D]."""
        paged = self.paged
        running = paged.running
        cos, sin, places = running.turns(*position_embeddings)
        q = rope_append_kv(
            self.qkv(hidden_states[0], running.adapted).view(
                -1, self._heads, paged.call.shape.key_width
            ),
            self.qk_norm,
            cos,
            sin,
            places,
            *running.kv.layers[paged.index],
            running.batch.slots,
            eps=self.eps,
        )
        mixed = paged.attended(q, None).flatten(1)
        return self.output(mixed, running.adapted)[None], None


def fuse(built: Skeleton, names: Collection[str], reader: Reader, running: Pass) -> None:
    """Read the blocks that our kernels compute as they are, and put them in place.

    names: of the tensors that are one module's alone.
    """
    # copies cannot tell, as they turn as much of a head as they are given tables for
    is_whole = built.turned == {call.shape.key_width for call in built.attention.values()}
    for prefix, module in list(built.causal.named_modules()):
        call = built.attention.get(module)
        block: GatedMLP | RotaryAttention | None
        if call is None and _has(module, prefix, (*_GATE_UP, "down_proj"), names):
            block = _gated_mlp(prefix, module, reader, running)
        elif is_whole and call is not None and _has(module, prefix, (*_QKV, "o_proj"), names):
            block = _attention(prefix, module, call, reader)
        else:
            continue
        if block is not None:
            module.forward = block
            for part in module.modules():
                part._parameters.clear()
            module._modules.clear()


def _gated_mlp(prefix: str, module: Any, reader: Reader, running: Pass) -> GatedMLP | None:
    if not _is_gated_mlp(module):
        return None
    gate_up = reader.linear(*(f"{prefix}.{part}" for part in _GATE_UP))
    return GatedMLP(gate_up, reader.linear(f"{prefix}.down_proj"), running)


def _attention(
    prefix: str, module: Any, call: AttentionCall, reader: Reader
) -> RotaryAttention | None:
    norms = _norms_of_heads(module, call)
    if norms is None or len({(norm.eps, norm.plus) for norm in norms}) > 1:
        return None
    qk_norm, eps = None, 1e-6
    if norms:
        eps = norms[0].eps
        weights = [reader.vector(f"{prefix}.{part}_norm.weight") + norms[0].plus for part in "qk"]
        heads = call.n_heads, call.shape.n_heads
        qk_norm = torch.cat([w.expand(n, -1) for w, n in zip(weights, heads, strict=True)])
    qkv = reader.linear(*(f"{prefix}.{part}" for part in _QKV))
    output = reader.linear(f"{prefix}.o_proj")
    return RotaryAttention(qkv, output, qk_norm, eps, module.__dict__[PLACE])


def _has(module: Any, prefix: str, parts: tuple[str, ...], names: Collection[str]) -> bool:
    """Whether the projections are there, are the module's own, and have biases all or none."""
    layers = [module._modules.get(part) for part in parts]
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    biases = [layer.bias is not None for layer in layers[:-1] if layer is not None]
    return len(set(biases)) == 1 and all(f"{prefix}.{part}.weight" in names for part in parts)


def _is_gated_mlp(module: Any) -> bool:
    small, draws = copy.copy(module), torch.Generator().manual_seed(0)
    small._modules = {
        **module._modules,
        "gate_proj": (gate := _small(_WIDTH, 16, draws)),
        "up_proj": (up := _small(_WIDTH, 16, draws)),
        "down_proj": (down := _small(16, _WIDTH, draws)),
    }
    x = _numbers(1, _ROWS, _WIDTH, draws=draws)
    with torch.inference_mode():
        return _same(lambda: small(x), lambda: down(F.silu(gate(x)) * up(x)))


class _SmallAttention:
    """A copy of an attention module with small random projections, and what ours makes of them."""

    def __init__(self, module: Any, call: AttentionCall):
        self.draws, self.width = torch.Generator().manual_seed(0), call.shape.key_width
        sizes = [n * self.width for n in (call.n_heads, *(2 * [call.shape.n_heads]))]
        self.qkv = [_small(_WIDTH, size, self.draws) for size in sizes]
        self.output = _small(sizes[0], _WIDTH, self.draws)
        named = [name for name in ("q_norm", "k_norm") if name in module._modules]
        norms = [_small_norm(module._modules[name], self.width, self.draws) for name in named]
        self.norms = [as_norm(norm) for norm in norms]
        self.mixed = _numbers(1, _ROWS, call.n_heads, self.width, draws=self.draws)
        self.seen: list[Tensor] = []
        self.module = copy.copy(module)
        self.module._modules = {
            **module._modules,
            **dict(zip((*_QKV, "o_proj"), (*self.qkv, self.output), strict=True)),
            **dict(zip(named, norms, strict=True)),
        }
        self.module.__dict__ = {**self.module.__dict__, PLACE: self._attend}
        self.x = _numbers(1, _ROWS, _WIDTH, draws=self.draws)
        angles = _numbers(1, _ROWS, self.width // 2, draws=self.draws)
        angles = torch.cat((angles, angles), -1)
        self.turns = angles.cos(), angles.sin()

    def _attend(self, module: Any, *given: Any) -> Any:
        self.seen = [*given[:3]]  # query, key and value
        return self.mixed, None

    def by_module(self) -> Tensor:
        """The output, queries, keys and values, in one row."""
        given = {"position_embeddings": self.turns, "attention_mask": None}
        out = self.module(hidden_states=self.x, **given)[0]
        return torch.cat([out.flatten(), *(one[0].transpose(0, 1).flatten() for one in self.seen)])

    def by_ours(self) -> Tensor:
        made = [project(self.x).view(_ROWS, -1, self.width) for project in self.qkv]
        for index, norm in enumerate(self.norms):
            assert norm is not None, "looked at before"
            made[index] = norm(made[index])
        made[:2] = [_turned(one, *self.turns) for one in made[:2]]
        out = self.output(self.mixed.flatten(2))
        return torch.cat([out.flatten(), *(one.flatten() for one in made)])


def _norms_of_heads(module: Any, call: AttentionCall) -> list[Norm] | None:
    """Those of queries and keys, none or two; None if it is no such attention."""
    if call.has_sinks or call.shape.value_width != call.shape.key_width or call.shape[1] % 2:
        return None
    small = _SmallAttention(module, call)
    norms = [norm for norm in small.norms if norm is not None]
    if len(norms) != len(small.norms) or len(norms) == 1:
        return None
    with torch.inference_mode():
        return norms if _same(small.by_module, small.by_ours) else None


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[N, H, D], dimension d with d + D/2."""
    half = heads.shape[-1] // 2
    rotated = torch.cat((-heads[..., half:], heads[..., :half]), -1)
    return heads * cos[0, :, None] + rotated * sin[0, :, None]


def _small(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    weight = _numbers(outputs, inputs, draws=draws) * inputs**-0.5
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _small_norm(norm: Any, width: int, draws: torch.Generator) -> Any:
    small = copy.copy(norm)
    weight = nn.Parameter(_numbers(width, draws=draws), requires_grad=False)
    small._parameters = {**norm._parameters, "weight": weight}
    return small


def _numbers(*shape: int, draws: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draws)


def _same(theirs: Callable[[], Tensor], ours: Callable[[], Tensor]) -> bool:
    """Whether the module takes the inputs at all, and gives the same."""
    try:
        got = theirs()
    except Exception:
        return False  # it is of another kind, and whatever it wants is not there
    expected = ours()
    return got.shape == expected.shape and bool(
        torch.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
    )
