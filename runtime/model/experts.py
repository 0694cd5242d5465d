"""Mixtures of experts: a router chooses a few gated MLPs for each row, and weighs what they give.

All experts of a layer are two grouped products, which read the weights of each expert that is
wanted once, and a row's result does not depend on which other rows want it. Knows no files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model.batch import AdaptedRows
from runtime.model.transformer import GatedMlp, Linear, PackedMlp, as_it_is
from specedge_kernels import (
    PackedLinear,
    PackedRouter,
    QuantizedWeight,
    grouped_linear,
    grouped_quantized_linear,
    pack_linear,
    route,
    silu_mul,
    weighted_sum,
)


class GroupedLinear:
    """x [N, K] and the sets [N, k] of each row -> [N k, M]: a `Linear` of E sets of weights.

    weights: the matrices [M, K] of all sets, which are packed one by one; quantised ones of the
    same formats. bias [E, M] float32. exact as for `Linear`.
    """

    def __init__(
        self,
        weights: Iterable[Tensor | QuantizedWeight],
        bias: Tensor | None = None,
        exact: bool = False,
    ):
        self.bias, self.exact = bias, exact
        self.weight: Tensor | QuantizedWeight
        floats: list[Tensor] = []
        quantized: list[QuantizedWeight] = []
        for weight in weights:
            if isinstance(weight, QuantizedWeight):
                quantized.append(weight)
                self.out_features, self.in_features = weight.out_features, weight.in_features
            else:
                floats.append(pack_linear(weight))
                self.out_features, self.in_features = weight.shape
        if floats and quantized:
            raise ValueError("expected sets that are all floats or all quantised, got both")
        self.weight = QuantizedWeight.stacked(quantized) if quantized else torch.stack(floats)

    def as_packed(self) -> PackedLinear:
        """The same on a CPU, as `Decoder` takes it."""
        return PackedLinear(self.weight, self.out_features, None, self.exact)

    @property
    def bytes_of_one(self) -> int:
        """Of one set, packed."""
        weight = self.weight
        packed = weight.packed if isinstance(weight, QuantizedWeight) else weight
        return packed[0].nbytes

    def __call__(self, x: Tensor, sets: Tensor) -> Tensor:
        if isinstance(self.weight, QuantizedWeight):
            return grouped_quantized_linear(x, self.weight, sets, self.bias, exact=self.exact)
        return grouped_linear(x, self.weight, self.out_features, sets, self.bias)


class Experts:
    """The experts of a layer: x [N, H], chosen [N, k] int and weights [N, k] -> [N, H].

    gate: what lies between the two products of an expert, [N k, 2 I] -> [N k, I]; whole as for a
    `GatedMlp`.
    """

    def __init__(
        self,
        gate_up: GroupedLinear,
        down: GroupedLinear,
        gate: Callable[[Tensor], Tensor] = silu_mul,
        whole: Callable[[Tensor], Tensor] = as_it_is,
    ):
        self.gate_up, self.down, self.gate, self.whole = gate_up, down, gate, whole
        self.bytes_of_one = gate_up.bytes_of_one + down.bytes_of_one  # an expert's weights

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        chosen = chosen.int().contiguous()
        inner = self.whole(self.gate(self.gate_up(x, chosen)))
        outputs = self.down(inner, chosen.view(-1, 1))
        return self.whole(weighted_sum(outputs, weights.float().contiguous()))


@dataclass(frozen=True)
class Router:
    """x [N, H] -> experts [N, k] int32 and their weights [N, k] float32, chosen by `route`."""

    linear: Linear  # H -> E
    k: int
    scoring: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    bias: Tensor | None = None  # [E]
    n_groups: int = 1
    top_groups: int = 1
    group_best: int = 2

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return route(
            self.linear(x).float(),
            self.k,
            scoring=self.scoring,
            normalise=self.normalise,
            scale=self.scale,
            bias=self.bias,
            n_groups=self.n_groups,
            top_groups=self.top_groups,
            group_best=self.group_best,
        )


@dataclass(frozen=True)
class SharedExpert:
    """An expert that every row asks, weighed by the sigmoid of its own gate H -> 1."""

    mlp: GatedMlp
    gate: Linear

    def __call__(self, x: Tensor, adapted: AdaptedRows | None = None) -> Tensor:
        _, weight = route(self.gate(x).float(), 1, scoring="sigmoid")
        return weighted_sum(self.mlp(x, adapted), weight)


@dataclass(frozen=True)
class MixtureOfExperts:
    """The MLP of a layer with experts: x [N, H] -> [N, H]. Adapters add to the shared one."""

    router: Router
    experts: Experts
    shared: SharedExpert | None = None

    def __call__(self, x: Tensor, adapted: AdaptedRows | None = None) -> Tensor:
        out = self.experts(x, *self.router(x))
        return out if self.shared is None else out.add_(self.shared(x, adapted))

    def as_packed(self) -> PackedMlp | None:
        """None beside a shared expert."""
        if self.shared is not None:
            return None
        router = PackedRouter(self.router.linear.as_packed(), self.router.k, self.router.normalise)
        gate_up, down = self.experts.gate_up, self.experts.down
        return PackedMlp(gate_up.as_packed(), down.as_packed(), router)
