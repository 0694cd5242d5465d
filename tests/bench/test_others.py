"""What others have of our cores: by hand, and with another program on them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.bench import others
from runtime.bench.others import busy, others_s

SPIN = "import os; os.sched_setaffinity(0, {core}); print(flush=True)\nwhile True: pass"


def test_a_core_is_busy_with_all_but_waiting() -> None:
    """user nice system idle iowait irq softirq steal guest guest_nice"""
    assert (
        busy(["1", "20", "300", "9999999", "8888888", "4000", "50000", "600000", "1", "20"])
        == 654321
    )


def test_ours_is_taken_off_and_other_cores_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    lines = ["cpu 9 9 9 9 9 9 9 9", "cpu0 100 0 0 7 7 0 0 20", "cpu1 300 0 0 7 7 0 0 0", "intr 5"]
    stat.write_text("\n".join([*lines, "cpu10 7 7 7 7 7 7 7 7", ""]), encoding="ascii")
    monkeypatch.setattr(others, "STAT", stat)
    monkeypatch.setattr(time, "process_time", lambda: 0.5)
    monkeypatch.setattr(others, "available_cores", lambda: {0, 1})
    assert others_s() == pytest.approx((420 * tick_s - 0.5) / 2)
    monkeypatch.setattr(others, "available_cores", lambda: {1})
    assert others_s() == pytest.approx(300 * tick_s - 0.5)
    stat.unlink()
    assert others_s() == 0.0


@pytest.mark.skipif(not others.STAT.exists(), reason="this system does not count")
def test_another_program_is_seen() -> None:
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", SPIN.format(core={core})]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before_s, ends_s = others_s(), time.monotonic() + 30
        while others_s() - before_s < 0.05:
            assert time.monotonic() < ends_s, "it spins, and is not seen"
        other.kill()
