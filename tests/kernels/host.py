"""Runs the bodies of CUDA kernels on a CPU: compiled with sanitisers, fed and read by pipes."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specedge_kernels.cpu import DTYPES

ROOT = Path(__file__).parents[2]


def build(op: str, folder: Path) -> Path:
    """The program of <op>_host.cpp; skips the test where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler to build the host version of the CUDA kernel")
    program = folder / op
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += ["-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    source = Path(__file__).parent / f"{op}_host.cpp"
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    return program


def run(program: Path, *parts: bytes) -> bytes:
    child = subprocess.run([program], input=b"".join(parts), capture_output=True, check=False)
    assert child.returncode == 0, child.stderr.decode()
    return child.stdout


def numbers(*values: int) -> bytes:
    return torch.tensor(values, dtype=torch.int64).numpy().tobytes()


def floats(*values: float) -> bytes:
    return torch.tensor(values, dtype=torch.float32).numpy().tobytes()


def raw(tensor: Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def sized(tensor: Tensor | None) -> bytes:
    content = b"" if tensor is None else raw(tensor)
    return numbers(len(content)) + content


def cache_of(cache: Tensor) -> bytes:
    """cache [P, S, Hk, D], NHD or HND in memory, as HostCache reads it."""
    head = numbers(int(DTYPES[cache.dtype]), *cache.shape, *cache.stride()[:3])
    return head + sized(in_memory(cache))


def in_memory(cache: Tensor) -> Tensor:
    return cache if cache.is_contiguous() else cache.transpose(1, 2)


def like(content: bytes, cache: Tensor) -> Tensor:
    """What the program wrote, in the shape and layout of the cache."""
    stored = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(cache.dtype)
    shaped = stored.view(in_memory(cache).shape)
    return shaped if cache.is_contiguous() else shaped.transpose(1, 2)
