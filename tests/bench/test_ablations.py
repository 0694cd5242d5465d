"""Ablations in simulated time: against the paper's own columns, and by what must be worse."""

import dataclasses
import json
import random
from pathlib import Path
from statistics import fmean

import pytest

from runtime.bench import __main__ as bench
from runtime.bench.__main__ import ablations_options
from runtime.bench.simulation import RESENT_S, Device, Simulation
from runtime.bench.standin import ablations, paper
from runtime.bench.standin.ablations import Simulated, accelerator, server_only_tokens_per_s
from runtime.bench.standin.grid import BASE, CELLS, LAPTOP, PHONE, RTX_2080_TI, RTX_3060_TI, Cell
from runtime.server.policy.credits import POLICIES

ROW = paper.TABLE_1[13]
SECONDS = 4.0


def ratio(cell: Cell) -> float:
    return ablations.simulate(cell, ROW, 1, 0, SECONDS).throughput_ratio


def cell(**differs: object) -> Cell:
    return dataclasses.replace(BASE, **differs)  # type: ignore[arg-type]


def test_the_other_method_has_the_papers_throughput() -> None:
    """A row at a time within what the mean of the cycles allows, and on the mean."""
    pairs = [
        (server_only_tokens_per_s(row, accelerator(row, BASE), 1), row.server_only_tokens_s)
        for row in paper.TABLE_1
    ]
    assert all(ours == pytest.approx(theirs, rel=0.05) for ours, theirs in pairs)
    assert fmean(a for a, _ in pairs) == pytest.approx(fmean(b for _, b in pairs), rel=0.01)


def test_what_must_be_worse_is() -> None:
    whole = ablations.simulate(BASE, ROW, 1, 0, SECONDS)
    assert whole == ablations.simulate(BASE, ROW, 1, 0, SECONDS)
    assert 1.5 < whole.throughput_ratio < 3.5
    assert 0.9 < whole.verifying <= 1
    assert whole.latency_ratio == pytest.approx(2 / whole.throughput_ratio)
    paid = 1 + 2 * 0.35 / 5.05
    assert whole.cost_ratio == pytest.approx(whole.throughput_ratio / paid)
    assert ratio(cell(proactive="off")) < whole.throughput_ratio
    for worse in ({"rtt_ms": 100.0}, {"loss": 0.3}, {"devices": (PHONE,)}):
        assert ratio(cell(**worse)) < 0.9 * whole.throughput_ratio, worse
    assert ablations.simulate(cell(devices=(LAPTOP,)), ROW, 1, 0, 1.0).cost_ratio is None


def test_slower_memory_is_slower() -> None:
    passes = [edge.pass_ms for edge in (BASE.devices[0], RTX_2080_TI, RTX_3060_TI, LAPTOP, PHONE)]
    assert passes == sorted(passes)
    assert passes[0] == 11.0


def test_what_is_lost_comes_after_tcp_has_noticed() -> None:
    """The mean of many ways; without loss nothing else is drawn."""
    device, loss = Device(0.02, jitter=0.5), 0.25
    credits = POLICIES["drr"]()
    simulation = Simulation(accelerator(ROW, BASE), [], credits, seed=4)
    lost = dataclasses.replace(device, loss=loss)
    mean_s = fmean(simulation._one_way_s(lost) for _ in range(20000))
    assert mean_s == pytest.approx(0.01 * 1.25 + loss * (RESENT_S + 0.02), rel=0.05)
    simulation = Simulation(accelerator(ROW, BASE), [], credits, seed=4)
    dice = random.Random(4)
    assert [simulation._one_way_s(device) for _ in range(9)] == pytest.approx(
        [0.01 * (1 + 0.5 * dice.random()) for _ in range(9)]
    )


def test_the_report_by_hand() -> None:
    def one(group: str, name: str, ratio: float, cost: float | None) -> Simulated:
        return Simulated(group, name, "a", "b", 1.0, 4.0, 0.5, ratio, 2 / ratio, cost)

    base = [one(BASE.group, BASE.name, ratio, 1.5) for ratio in (2.0, 3.0)]
    less = [one("edges", "phone", ratio, None) for ratio in (1.0, 1.5)]
    lines = ablations.report([*base, *less]).splitlines()
    assert lines[0].startswith("simulated, stand-in models")
    assert "means of 2 rows" in lines[0]
    assert lines[3].split()[-8:] == ["2.50", "2.00", "3.00", "100%", "1.50", "-17%", "4.00", "50%"]
    assert lines[4].split()[-7:] == ["1.25", "1.00", "1.50", "50%", "+67%", "4.00", "50%"]


def test_the_command_keeps_and_draws_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in ("SETTLE_S", "COUNTED_S", "LEAST_S"):
        monkeypatch.setattr(ablations, constant, 0.5)
    file, folder = tmp_path / "rows.jsonl", tmp_path / "plots"
    options = ["--pairs", "14B/0.6B", "--tasks", "math", "--groups", "round trip"]
    ablations.main(ablations_options([*options, "--json", str(file)]))
    assert capsys.readouterr().out.startswith("simulated")
    lines = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))
    names = {cell.name for cell in CELLS if cell.group in (BASE.group, "round trip")}
    assert {line["cell"] for line in lines} == names
    assert len(lines) == len(names)
    assert all(line["ablation"] == "simulated" for line in lines)
    pytest.importorskip("matplotlib")
    bench.draw(bench.plot_options([str(file), str(folder)]))
    for name in ("ablations.png", "round-trip.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    file.write_text('{"ablation": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: expected a figure of an ablation"):
        bench.draw(bench.plot_options([str(file), str(folder)]))
    file.write_text("", encoding="utf-8")
    from runtime.bench.standin import ablations_plot

    with pytest.raises(ValueError, match="nothing to draw yet"):
        ablations_plot.write(ablations_plot.read(file), folder)


def test_a_check_of_a_task_that_was_left_out_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablations_options(["--tasks", "math", "--check"])
    assert "--check runs the task qa; add it to --tasks" in capsys.readouterr().err
    assert ablations_options(["--tasks", "math", "qa", "--check"]).check
