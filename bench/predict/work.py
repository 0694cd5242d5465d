"""What is predicted: the models, a piece of work, and tensors without data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.predict.model import Stream
from tests.gpu.launches import Launch

F32, BF16, I32, I64 = torch.float32, torch.bfloat16, torch.int32, torch.int64


@dataclass(frozen=True)
class Model:
    name: str
    query_heads: int
    heads: int
    hidden: int
    inner: int
    layers: int
    dim: int = 128
    vocabulary: int = 151936


DENSE = Model("Qwen3-14B", 40, 8, 5120, 17408, 40)
EXPERTS = Model("Qwen3-30B-A3B", 32, 4, 2048, 768, 48)


@dataclass(frozen=True)
class Work:
    """One way to do an op at a shape; `streams` says what its launches move, by kernel.

    A kernel that is not in `streams` moves next to nothing.
    """

    op: str
    way: str
    shape: str
    n_bytes: float  # of the algorithm, as the operations
    flops: float
    call: Callable[[], object]
    streams: Callable[[Launch], Stream | None]


def empty(*shape: int, dtype: torch.dtype = I32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
