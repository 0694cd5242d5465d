"""What rows of a verification step share: its sizes, random numbers, and Triton's launchers."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

PAGE_TOKENS = 16


@dataclass(frozen=True)
class Step:
    """B requests with trees of T nodes; by default the width of SmolLM2-135M."""

    batch: int
    nodes: int
    vocabulary: int
    layers: int
    heads: int
    dim: int
    dtype: torch.dtype
    group: int = 3  # query heads of a key head
    inner: int = 1536

    @property
    def rows(self) -> int:
        return self.batch * self.nodes

    @property
    def hidden(self) -> int:
        return self.group * self.heads * self.dim

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.heads * self.dim * self.dtype.itemsize

    def trees_shape(self) -> str:
        return f"B{self.batch} T{self.nodes}"


def step_of(device: torch.device, quick: bool) -> Step:
    """SmolLM2-135M on a CPU, Qwen3-14B on a GPU."""
    if device.type == "cpu":
        return Step(1 if quick else 4, 16, 49152, 30, 3, 64, torch.float32)
    return Step(16, 32, 151936, 40, 8, 128, torch.bfloat16, 5, 17408)


def triton_ways(op: str, device: torch.device) -> tuple[tuple[str, Callable[..., Tensor]], ...]:
    """Triton's launcher of an op on a GPU, where CUDA C++ comes before it if it is built."""
    if device.type == "cpu":
        return ()
    return (("Triton", getattr(import_module(f"specedge_kernels.gpu.{op}"), op)),)


def normal(
    *shape: int, device: torch.device, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)
