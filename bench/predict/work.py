"""What is predicted: the models, pieces of work as compiled launches, tensors without data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from bench.predict import machine_code
from bench.predict.cards import Card
from bench.predict.machine_code import Code
from bench.predict.model import Stream
from tests.gpu.launches import Launch, Recorder

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
class Compiled:
    """One launch for a card; without a stream it moves next to nothing."""

    kernel: str
    code: Code
    programs: int
    stream: Stream | None


@dataclass(frozen=True)
class Work:
    """One way to do an op at a shape."""

    op: str
    way: str
    shape: str
    n_bytes: float  # of the algorithm, as the operations
    flops: float
    launches: Callable[[Card], list[Compiled]]


def in_triton(
    call: Callable[[], object], stream_of: Callable[[Launch], Stream | None], card: Card
) -> list[Compiled]:
    """What call() launches on this card, compiled and not executed."""
    launches: list[Launch] = []

    def record(kernel: triton.JITFunction, grid: tuple[int, ...]) -> object:
        return Recorder(kernel, launches)[grid]

    with card.pretended(), patch.object(triton.JITFunction, "__getitem__", record):
        call()
    return [
        Compiled(launch.kernel.__name__, read(launch, card.arch), launch.programs, stream)
        for launch, stream in zip(launches, map(stream_of, launches), strict=True)
    ]


def read(launch: Launch, arch: str) -> Code:
    with TemporaryDirectory() as folder:
        return machine_code.read(launch.compile(arch), Path(folder))


def empty(*shape: int, dtype: torch.dtype = I32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
