"""Experts of transformers' modules, which give way to ours (runtime/model/experts.py)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from runtime.model.backend.steady import steady


def is_experts(module: Any) -> bool:
    """Whether it is one that transformers lets others run: packed experts, told by these."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")


def gate_of(module: Any, on_cpu: bool) -> Callable[[Tensor], Tensor]:
    """What lies between the two products of an expert: the module's own."""
    between = module._apply_gate if module.has_gate else module.act_fn
    gate = steady(between) if on_cpu else between
    return lambda inner: gate(inner).contiguous()
