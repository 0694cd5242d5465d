"""RMS norms of transformers' modules by our kernel, where one is exactly that."""

from typing import Any

import torch
from torch import Tensor

from specedge_kernels import rms_norm

_TOLERANCE = 1e-5


class Norm:
    """x [..., H] -> [..., H], in place of a module's forward.

    plus: what was added to the module's weights.
    """

    def __init__(self, weight: Tensor, eps: float, plus: float = 0.0):
        self.weight, self.eps, self.plus = weight, eps, plus

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return rms_norm(rows, self.weight, self.eps).view(x.shape)


def as_norm(module: Any) -> Norm | None:
    """The same norm by our kernel; None if the module computes anything else.

    Families write x / rms * w or x / rms * (1 + w), and some have no w: which one it is shows in
    what the module makes of a few random rows.
    """
    eps = next((e for e in (getattr(module, name, None) for name in _EPS) if e is not None), None)
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float | int):
        return None
    if weight is None:
        return _Weightless(float(eps)) if _same(module, _Weightless(float(eps)), 64, None) else None
    if not isinstance(weight, Tensor) or weight.dim() != 1 or list(module.buffers()):
        return None
    for plus in (0.0, 1.0):
        norm = Norm((weight.float() + plus).to(weight.dtype).contiguous(), float(eps), plus)
        if _same(module, norm, len(weight), weight):
            return norm
    return None


_EPS = ("variance_epsilon", "eps", "epsilon")


class _Weightless(Norm):
    """A norm without weights, of rows of any width."""

    def __init__(self, eps: float):
        super().__init__(torch.empty(0), eps)

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.weight) != x.shape[-1] or self.weight.device != x.device:
            self.weight = x.new_ones(x.shape[-1])
        return super().__call__(x)


@torch.inference_mode()
def _same(module: Any, norm: Norm, width: int, weight: Tensor | None) -> bool:
    dtype = torch.float32 if weight is None else weight.dtype
    device = torch.device("cpu") if weight is None else weight.device
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    expected, got = module(x).float(), norm(x).float()
    tolerance = max(_TOLERANCE, 4 * torch.finfo(dtype).eps)
    return bool(torch.allclose(got, expected, rtol=tolerance, atol=tolerance))
