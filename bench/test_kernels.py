"""One small shape of every op under pytest-benchmark; correctness first.

    python -m pytest bench/test_kernels.py [--benchmark-json FILE]

These watch for regressions from one change to the next; `python -m bench.kernels` is the table
with floors and other ways. The floor of each and the share of it that was reached are in the JSON
file under extra_info; 8-bit integers may take less than the floor, whose arithmetic is that of
floats. On a GPU a call is many replays of one CUDA graph on the same inputs, which
the L2 may hold.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels import attention, experts, ops, products
from bench.kernels.__main__ import Machine
from bench.kernels.case import Case
from bench.kernels.timing import capture, copy_bandwidth, matmul_rate
from specedge_kernels.library import DEVICES, HOST_OPS, OPS
from specedge_kernels.quantized import FORMS

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
STEP = ops.Step(2, 8, 4096, 2, 3, 64, DTYPE)
REPLAYED = 20  # calls of a graph


def ours() -> list[Case]:
    shapes = attention.smollm2(2, 128, 8, DTYPE), attention.smollm2(1, 0, 512, DTYPE)
    return [
        *(next(attention.cases_of(shape, DEVICE)) for shape in shapes),
        *(case for case in ops.cases_of(STEP, DEVICE) if case.way == "ours"),
        products.linear(4, DTYPE, DEVICE),
        *experts.cases(DEVICE),
        *quantised(),
    ]


def quantised() -> list[Case]:
    products_of = [products.quantized_linear(4, kind, device=DEVICE) for kind in FORMS]
    if DEVICE.type == "cuda":
        return products_of
    return [*products_of, products.pack_quantized(12), products.dequantize(12)]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(DEVICE, copy_bandwidth(DEVICE), matmul_rate(DEVICE))


def test_every_op_has_a_case() -> None:
    here = {op for op in OPS if DEVICE.type in DEVICES[op]}
    if DEVICE.type == "cuda":
        here -= set(HOST_OPS)
    assert {case.op for case in ours()} == here


@pytest.mark.parametrize("case", ours(), ids=lambda case: f"{case.op}-{case.shape}")
def test_op(case: Case, machine: Machine, benchmark: Any) -> None:
    work = case.prepare(0)
    assert work.check() == ""
    run, calls = on_device(work.call)
    benchmark(run)
    if benchmark.stats:  # None where benchmarks are switched off
        floor_s, took_s = machine.floor_s(case), benchmark.stats.stats.median / calls
        benchmark.extra_info["floor_us"] = floor_s * 1e6
        benchmark.extra_info["share_of_floor"] = floor_s / took_s


def on_device(call: Callable[[], object]) -> tuple[Callable[[], object], int]:
    """What to time, and how many calls it makes: the host's part is not counted on a GPU."""
    if DEVICE.type == "cpu":
        return call, 1
    graph = capture([call], REPLAYED)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, REPLAYED
