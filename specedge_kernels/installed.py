"""What is installed here: version, instruction set of the CPU, devices of the ops.

`python -m specedge_kernels` prints it.
"""

from importlib import metadata

import torch

from specedge_kernels import _cpu
from specedge_kernels.library import DEVICES


def version() -> str:
    """Of the package `specedge` that is installed; "0+unknown" for a folder that is not."""
    try:
        return metadata.version("specedge")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def instruction_set() -> str:
    """For which the CPU's C++ runs: generic, avx2, avx512 or avx512vnni; on ARM generic or dotprod.

    Chosen when the module was loaded; the environment variable SPECEDGE_ISA asks for a lower one.
    """
    return _cpu.isa()


def devices() -> dict[str, tuple[str, ...]]:
    """Type of device -> the ops that run on its tensors: "cpu", and "cuda" if torch finds a GPU."""
    types = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {device: tuple(op for op in DEVICES if device in DEVICES[op]) for device in types}
