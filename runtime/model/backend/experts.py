"""Experts of transformers' modules: each row through its own, whatever else shares the pass."""

from typing import Any

from torch import Tensor

from runtime.model.backend.steady import steady
from runtime.model.transformer import Linear


def is_experts(module: Any) -> bool:
    """Whether it is one that transformers lets others run: packed experts, told by these."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")


class Experts:
    """The matrices of all experts of one layer, and their biases [E, M] if they have any."""

    def __init__(
        self,
        module: Any,
        first: list[Linear],
        second: list[Linear],
        first_bias: Tensor | None,
        second_bias: Tensor | None,
        on_cpu: bool,
    ):
        # what lies between the two products is the module's own
        between = module._apply_gate if module.has_gate else module.act_fn
        self._between = steady(between) if on_cpu else between
        self._first, self._second = first, second
        self._first_bias, self._second_bias = first_bias, second_bias

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [N, H], chosen [N, k] and their weights [N, k] -> [N, H].

        What an expert gives is added in the order in which the router named it.
        """
        made = x.new_empty(*chosen.shape, x.shape[1])  # [N, k, H]
        for expert in chosen.unique().tolist():
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            inner = self._first[expert](x[rows])
            if self._first_bias is not None:
                inner = inner + self._first_bias[expert]
            out = self._second[expert](self._between(inner).contiguous())
            if self._second_bias is not None:
                out = out + self._second_bias[expert]
            made[rows, place] = out
        total = made[:, 0] * weights[:, :1]
        for place in range(1, chosen.shape[1]):
            total = total + made[:, place] * weights[:, place : place + 1]
        return total.to(x.dtype)
