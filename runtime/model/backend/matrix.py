"""A weight matrix in the form that the kernels take, in the place of a module's parameter."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.model.backend.attention import Pass
from runtime.model.config import ModelError
from runtime.model.transformer import Linear
from specedge_kernels import StoredWeight, dequantize


class Matrix(Tensor):
    """What `torch.nn.functional.linear` and `embedding` take for a weight [M, K], and
    `torch.addmm` for one [K, M].

    Has the shape and the type of the activations, but no numbers as a tensor: whatever else is
    done with it is a ModelError, for it would be done with wrong ones. `product` is None for a
    matrix whose rows alone are read; `embedding` is None where the product has them. `torch.bmm`
    takes a `stack` of them [E, K, M]. `running` is the pass whose rows may have adapters.
    """

    product: Linear | None
    embedding: Tensor | StoredWeight | None
    stack: Sequence[Linear]
    running: Pass | None

    @staticmethod
    def of(
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        product: Linear | None = None,
        embedding: Tensor | StoredWeight | None = None,
        stack: Sequence[Linear] = (),
    ) -> "Matrix":
        made: Matrix = Tensor._make_wrapper_subclass(Matrix, shape, dtype=dtype, device=device)
        made.product, made.embedding, made.stack = product, embedding, stack
        made.running = None
        return made

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] -> [..., M]."""
        assert self.product is not None, "a matrix for look-ups is multiplied"
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        out = self.product(rows.contiguous(), self.running.adapted if self.running else None)
        if bias is not None:
            out = out.add_(bias)
        return out if x.dim() == 2 else out.view(*x.shape[:-1], out.shape[-1])

    def each(self, x: Tensor) -> Tensor:
        """x [E, N, K] by one matrix of the stack each -> [E, N, M].

        Rows of zeros, of tokens that did not choose the expert, are left out on a CPU.
        """
        out = x.new_zeros(*x.shape[:2], self.shape[2])
        for mine, rows, product in zip(out, x, self.stack, strict=True):
            if x.device.type == "cpu":
                chosen = rows.any(-1).nonzero()[:, 0]
                mine[chosen] = product(rows[chosen])
            else:
                mine.copy_(product(rows))
        return out

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix, [*ids.shape, K]."""
        flat = ids.reshape(-1)
        if self.embedding is None:
            assert self.product is not None, "a matrix has a form"
            found = self.product.rows(flat)
        elif isinstance(self.embedding, StoredWeight):
            found = dequantize(self.embedding.rows[flat], self.embedding.kind)
        else:
            found = self.embedding[flat]
        return found.to(dtype).view(*ids.shape, -1)

    def _in(self, dtype: torch.dtype) -> "Matrix":
        """For activations of another type."""
        if dtype == self.dtype or self.product is None:
            return self
        assert isinstance(self.product.weight, Tensor), "activations have one type on a CPU"
        product = Linear(self.product.weight.to(dtype))
        return Matrix.of(tuple(self.shape), dtype, self.device, product)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is torch.addmm:
            bias, x, weight = args
            return Matrix.times(weight, x, bias)
        if func is torch.bmm:
            return args[1].each(args[0])
        if func in (Tensor.to, Tensor.type, Tensor.float):
            return args[0]._in(torch.float32 if func is Tensor.float else args[1])
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise ModelError(
            f"the model's code uses a weight matrix in a way that is not supported ({func}); "
            "expected products with it, or rows of it"
        )


def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    return Matrix.times(weight, input, bias)


def _embedding(input: Tensor, weight: Any, *_: Any, **__: Any) -> Tensor:
    return Matrix.rows(weight, input, weight.dtype)
