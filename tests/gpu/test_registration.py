import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from specedge_kernels import cpu, library
from tests.kernels.quantized_cases import random_stored

pytest.importorskip("triton")


@pytest.mark.parametrize("op", library.TRITON_OPS)
def test_a_launcher_takes_what_the_cpu_function_takes(op):
    launcher = getattr(import_module(f"specedge_kernels.gpu.{op}"), op)
    assert inspect.signature(launcher) == inspect.signature(getattr(cpu, op))


@pytest.mark.parametrize("op", ["append_kv", "rope_append_kv", "compact_kv"])
def test_a_cuda_function_takes_what_the_cpu_function_takes(op):
    pytest.importorskip("specedge_kernels._cuda")
    cuda = import_module("specedge_kernels.cuda")
    assert inspect.signature(getattr(cuda, op)) == inspect.signature(getattr(cpu, op))


def test_triton_is_left_alone_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so triton is wanted")
    code = "import sys, specedge_kernels; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "cuda" not in library.DEVICES["build_tree"]


def test_every_op_is_registered_where_a_gpu_is():
    code = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "from specedge_kernels import library\n"
        "for op in library.OPS: assert library.DEVICES[op].count('cuda') == 1, op"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_host_does_for_a_gpu_is_what_it_does_for_itself():
    stored = random_stored(12, 13, 256)
    for op in library.HOST_OPS:
        function = getattr(cpu, op)
        assert library.on_the_host(function)(stored, 12).equal(function(stored, 12))
