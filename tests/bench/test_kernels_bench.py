import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernels import attention, experts, ops, products
from bench.kernels.__main__ import Machine, cases, measured
from bench.kernels.baselines import bind_sdpa
from bench.kernels.case import Case, Work, far_from, unlike
from specedge_kernels.library import DEVICES, TRITON_OPS

CPU = torch.device("cpu")
SHAPE = attention.Shape("tiny", 6, 2, 16, torch.float32, torch.float32, 2, 20, 5)


def case_with(fault: str, optional: bool = False) -> Case:
    work = Work(lambda: None, lambda: fault)
    return Case("verify", "ours", "none", 8, 8, lambda seed: work, optional)


def test_only_rows_that_agree_are_printed(capsys):
    failures: list[str] = []
    cases = [case_with(""), case_with("wrong"), case_with("absent", optional=True)]
    rows = list(measured(iter(cases), Machine(CPU, 1e9, 1e9), failures))
    assert [row.case for row in rows] == cases[:1]
    assert failures == ["verify, ours, none"]
    printed = capsys.readouterr().err
    assert "FAILED: verify, ours, none: wrong" in printed
    assert "skipped: verify, ours, none: absent" in printed


def test_a_way_that_raises_fails_its_row_alone(capsys):
    def broken(seed: int) -> Work:
        raise RuntimeError("no such kernel")

    failures: list[str] = []
    cases = [Case("verify", "ours", "none", 8, 8, broken), case_with("")]
    assert len(list(measured(iter(cases), Machine(CPU, 1e9, 1e9), failures))) == 1
    assert len(failures) == 1
    assert "no such kernel" in capsys.readouterr().err


def test_every_op_of_a_gpu_has_a_row(monkeypatch):
    pytest.importorskip("triton")
    for op in TRITON_OPS:
        monkeypatch.setitem(DEVICES, op, ["cuda"])
    assert {case.op for case in cases(torch.device("cuda"), quick=True)} == set(TRITON_OPS)


def test_nan_is_close_to_nothing():
    one, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert far_from(one, one, 1e-5) == ""
    assert far_from(one, nan, 1e-5)
    assert far_from(one, one + 1e-3, 1e-5)
    assert unlike((one,), (nan,))


def test_the_check_of_attention_notices_a_wrong_mask():
    batch = attention.make_batch(SHAPE, CPU, 0)
    rows, expected = attention.some_rows(batch)
    assert attention.check(batch.run(), rows, expected, 1e-5) == ""
    assert attention.check(bind_sdpa(batch)(), rows, expected, 1e-5) == ""
    batch.tables[4][-1] ^= 1  # the last node no longer sees the root
    assert attention.check(bind_sdpa(batch)(), rows, expected, 1e-5)


SMALL = [
    *ops.cases_of(ops.Step(2, 5, 64, 1, 2, 8, torch.float32), CPU),
    *products.cases(CPU, quick=True),
    *experts.cases(CPU),
]


@pytest.mark.parametrize("case", SMALL)
def test_the_work_of_every_op_passes_its_check(case):
    work = case.prepare(3)
    assert work.check() == ""
    work.call()


def test_the_schedules_of_other_engines_compute_the_same():
    pytest.importorskip("triton")
    code = """
from tests.bench.test_kernels_bench import CPU, SHAPE, attention
from bench.kernels.schedules import per_query_head, sixteen_rows
batch = attention.make_batch(SHAPE, CPU, 0)
for schedule in (sixteen_rows, per_query_head):
    fault = attention.check(schedule(batch), *attention.some_rows(batch), 1e-5)
    assert not fault, f"{schedule.__name__}: {fault}"
"""
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
