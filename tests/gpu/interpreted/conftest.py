"""These tests launch kernels: on a GPU, or under the interpreter (tests/gpu/interpreter.py)."""

import os

import pytest
import torch

RUNS_KERNELS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if RUNS_KERNELS else ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
