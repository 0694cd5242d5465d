"""One small shape of every op under pytest-benchmark; correctness first.

    python -m pytest bench/test_kernels.py

These watch for regressions from one change to the next; `python -m bench.kernels` is the table
with floors and other ways.
"""

from collections.abc import Callable

import pytest
import torch

from bench.kernels import attention, ops, quantized
from bench.kernels.case import Case
from specedge_kernels.quantized import FORMS

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
STEP = ops.Step(2, 8, 4096, 2, 3, 64, DTYPE)


def ours() -> list[Case]:
    shapes = attention.smollm2(2, 128, 8, DTYPE), attention.smollm2(1, 0, 512, DTYPE)
    attend = [next(attention.cases_of(shape, DEVICE)) for shape in shapes]
    found = [*attend, *(case for case in ops.cases_of(STEP, DEVICE) if case.way == "ours")]
    if DEVICE.type == "cuda":
        return found
    return [
        *found,
        ops.linear(4, torch.float32),
        *(quantized.quantized_linear(4, kind) for kind in FORMS),
    ]


@pytest.mark.parametrize("case", ours(), ids=lambda case: f"{case.op}-{case.shape}")
def test_op(case: Case, benchmark: Callable) -> None:
    work = case.prepare(0)
    assert work.check() == ""

    def run() -> None:
        work.call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
