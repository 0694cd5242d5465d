"""What a launcher launches, for compiling it elsewhere: nothing is executed.

The launcher runs on CPU tensors while its kernels only write down how they were called, so that
what is compiled has the argument types, alignments and options of the real launch.
"""

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import triton
from triton.compiler import CompiledKernel

from tests.gpu.compiled import cross_compile

TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its arguments by name, and options such as num_warps."""

    kernel: triton.JITFunction
    arguments: dict[str, object]
    options: dict[str, object]
    grid: tuple[int, ...]

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def constant(self, name: str) -> int:
        value = self.arguments[name]
        assert isinstance(value, int), name
        return value

    def compile(self, arch: str) -> CompiledKernel:
        types, constants = self.specialisation()
        return cross_compile(self.kernel, arch, types, constants, **self.options)

    def specialisation(self) -> tuple[dict[str, str], dict[str, object]]:
        """What one compiled kernel is made for: types of arguments, and constants."""
        constants = {
            parameter.name: self.arguments[parameter.name]
            for parameter in self.kernel.params
            if parameter.is_constexpr or self._is_constant(parameter)
        }
        types = {
            parameter.name: _type(self.arguments[parameter.name], parameter.do_not_specialize)
            for parameter in self.kernel.params
            if parameter.name not in constants
        }
        return types, constants

    def _is_constant(self, parameter: triton.runtime.jit.KernelParam) -> bool:
        """Triton makes a constant of None, and of an integer that is 1 unless told not to."""
        value = self.arguments[parameter.name]
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        return value is None or is_one


def _type(value: torch.Tensor | float, any_value: bool) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    aligned = value % 16 == 0 and not any_value
    return ("i32" if abs(value) < 2**31 else "i64") + "*16" * aligned


class Recorder:
    """Stands in for a kernel: recorder[grid](arguments) adds to `launches`."""

    def __init__(self, kernel: triton.JITFunction, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert 0 < grid[0] < 2**31, grid
        assert all(0 < size < 2**16 for size in grid[1:]), grid
        return partial(self.record, grid)

    def record(self, grid: tuple[int, ...], *args: object, **named: object) -> None:
        names = self.kernel.arg_names
        arguments = dict(zip(names, args, strict=False))
        arguments |= {name: named.pop(name) for name in names if name in named}
        assert list(arguments) == names, "every argument once, in order"
        self.launches.append(Launch(self.kernel, arguments, named, grid))


def launches_of(
    module: ModuleType, launch: Callable[[], object], monkeypatch, *others: ModuleType
) -> list[Launch]:
    """The launches of kernels of `module` and `others` that launch() makes, in order."""
    launches: list[Launch] = []
    with monkeypatch.context() as patch:
        for owner in (module, *others):
            for name, value in list(vars(owner).items()):
                if isinstance(value, triton.JITFunction) and value.__module__ == owner.__name__:
                    patch.setattr(owner, name, Recorder(value, launches))
        launch()
    return launches


def resources(compiled: CompiledKernel, folder: Path) -> dict[str, int]:
    """REG: registers of a thread; STACK: bytes of its local memory, 0 unless it spills."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.check_output([tool, "--dump-resource-usage", str(cubin)], text=True)
    return {name: int(n) for name, n in re.findall(r"(REG|STACK):(\d+)", usage)}
