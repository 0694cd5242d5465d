"""What a row of the table is made of: work to time, a check to pass first, bytes and arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative Frobenius error against float64.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Work:
    """A call on inputs of its own, and a check of it: "" or what is wrong."""

    call: Callable[[], object]
    check: Callable[[], str]


@dataclass(frozen=True)
class Case:
    """One way to do an op at one shape; `prepare` makes work from a seed."""

    op: str
    way: str
    shape: str
    n_bytes: int
    flops: int
    prepare: Callable[[int], Work]
    # May be missing or refuse the shape: then it is skipped, with the reason, and nothing fails.
    optional: bool = False


def far_from(expected: Tensor, got: Tensor, tolerance: float) -> str:
    """ "" if got is close to expected, else the error; NaN is never close."""
    expected, got = expected.double().cpu(), got.double().cpu()
    error = float((got - expected).norm() / expected.norm())
    return "" if error <= tolerance else f"relative error {error:.1e}, allowed {tolerance:.0e}"


def unlike(expected: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> str:
    """ "" if all tensors are equal, else which one is not."""
    for i, (want, have) in enumerate(zip(expected, got, strict=True)):
        differing = int((want.cpu() != have.cpu()).sum())
        if differing:
            return f"{differing} of {want.numel()} elements of output {i} differ"
    return ""
