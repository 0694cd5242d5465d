"""Functions of single numbers whose bits do not depend on where in a tensor a number lies.

On a CPU torch computes most of a tensor with one approximation of exp and the like, by whole
vectors, and what is left at the end of each thread's part with another. So a number's bits depend
on the size of the batch. Over every second place of a tensor it takes the second one throughout.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# all of torch's that models use and that are no exactly rounded arithmetic
UNSTEADY = frozenset(
    {
        *(torch.exp, torch.expm1, torch.log, torch.log1p, torch.tanh, torch.sigmoid, torch.erf),
        *(Tensor.exp, Tensor.expm1, Tensor.log, Tensor.log1p, Tensor.tanh, Tensor.sigmoid),
        *(Tensor.erf, torch.sin, torch.cos, Tensor.sin, Tensor.cos, torch.erfc, Tensor.erfc),
        *(F.silu, F.gelu, F.softplus, F.sigmoid, F.tanh, F.mish, F.elu, F.selu, F.celu),
        *(F.logsigmoid, F.hardswish, torch.selu, torch.celu, torch.exp2, Tensor.exp2),
    }
)


class Steady(TorchFunctionMode):
    """Within it such functions are computed number by number. For CPUs.

    used: whether there were any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in UNSTEADY and not _is_spread(args[0]):
            self.used = True
            return func(_every_second_place(args[0]), *args[1:], **_not_in_place(kwargs))
        return func(*args, **(kwargs or {}))


def steady(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The function, within Steady."""

    def within(*args: Any, **kwargs: Any) -> Any:
        with Steady():
            return forward(*args, **kwargs)

    return within


def is_activation(module: Any) -> bool:
    return type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation")


def _is_spread(x: Tensor) -> bool:
    """Whether it lies at every second place already."""
    return x.dim() > 0 and x.shape[-1] > 1 and x.stride(-1) == 2


def _every_second_place(x: Tensor) -> Tensor:
    spread = x.new_empty(*x.shape, 2)[..., 0]
    return spread.copy_(x)


def _not_in_place(kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in (kwargs or {}).items() if name != "inplace"}
