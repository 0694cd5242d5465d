"""Capacity in simulated time: the simulation against the real loop's parts, and its search."""

import json
import math
import random
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest

from runtime.bench.__main__ import capacity_options
from runtime.bench.simulation import Device
from runtime.bench.standin import capacity, paper
from runtime.bench.standin.calibration import BEAMS, WIDTH, agreement, name
from runtime.bench.standin.capacity import (
    FINE,
    MOST_CLIENTS,
    NO_OFFERS,
    STRETCH_TOKENS,
    Setting,
    most,
)
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.gain import gain_at, gains
from runtime.bench.standin.simulated import StandInTrip
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.server.policy.pipeline import Grant
from runtime.wire.messages import Turn

ROW = paper.TABLE_1[3]
SETTING = Setting(paper.RTT_MS * 1e-3, seed=1)


@pytest.mark.parametrize("capacity_is", [0, 1, 7, 8, 9, 50, 300, MOST_CLIENTS, 10 * MOST_CLIENTS])
@pytest.mark.parametrize("start", [1, 8, 200])
def test_the_search_finds_how_many_fit(capacity_is: int, start: int) -> None:
    found = most(lambda clients: clients <= capacity_is, start)
    expected = min(capacity_is, MOST_CLIENTS)
    assert expected - max(expected // FINE, 1) < found <= expected or found == expected == 0


def test_stretches_against_brute_force() -> None:
    dice = random.Random(2)
    verdicts, now_s = [(0.0, 1)], 0.0
    for _ in range(150):
        now_s += dice.uniform(0.01, 0.3)
        verdicts.append((now_s, dice.randint(1, 6)))
    expected = []
    for start, (start_s, _) in enumerate(verdicts):
        tokens = 0
        for time_s, count in verdicts[start + 1 :]:
            tokens += count
            if tokens >= STRETCH_TOKENS:
                expected.append((time_s - start_s) / tokens)
                break
    assert list(capacity.stretch_means(verdicts)) == pytest.approx(expected)


@pytest.mark.parametrize("target", ["14B", "32B"])
def test_more_rows_never_take_less_time(target: str) -> None:
    rows, seconds = zip(*paper.step_points(target), strict=True)
    assert rows == (1, 33, 66, 99, 132)
    assert list(seconds) == sorted(seconds)
    assert seconds[1] == pytest.approx(paper.times()[f"{target}/1.7B"].verify_ms * 1e-3)


def test_what_a_tree_gains_at_a_place_is_what_it_gains_on_the_way() -> None:
    shape = TreeShape(8, BEAMS, 3, WIDTH)
    drafter = StandInDrafter(agreement(name(ROW)), 0.0, [])
    everywhere = fmean(gain_at(drafter, place, shape) for place in range(0, 2048, 3))
    assert everywhere == pytest.approx(fmean(gains(drafter, shape)), rel=0.06)


def test_a_simulated_edge_drafts_as_the_product_does() -> None:
    """With time for all passes and no drafting ahead it gains what any such tree does there."""
    device = Device(0.0, 0.011, max_nodes=32, max_passes=7)
    trip = StandInTrip(device, row=name(ROW), first=0, proactive=Proactive.OFF, plain=False)
    drafter = StandInDrafter(agreement(name(ROW)), 0.0, [])
    grant, now_s = Grant(Turn.EDGE, 32, math.inf, 0.0), 0.0
    for number in range(60):
        place = trip.speculation.context[-1]
        trip.received_s = now_s
        accepted = len(trip.luck(0.0, random.Random()))
        if number:
            assert 1 + accepted == gain_at(drafter, place, TreeShape(32, BEAMS, 7, WIDTH))
        trip.answered(accepted, 0.05, now_s)
        trip.draft(grant, now_s + 1.0)
        assert trip.sent_s == pytest.approx(now_s + 1.0)
        assert trip.passes <= 7
        now_s += 1.1


def test_the_server_keeps_a_promise_that_drafts_would_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """14B, 12 clients: plain decoding stays within 50 ms a token, drafts do not for all texts.

    Those that are asked for: edges that make offers are in every step.
    """
    monkeypatch.setattr(capacity, "COUNTED_S", 4.0)
    plain = SETTING.simulate(ROW, "plain", 12, math.inf)
    offering = SETTING.simulate(ROW, "specedge", 12, math.inf)
    assert offering.p99_ms < plain.p99_ms
    asked = partial(capacity.trips, offers=False)
    monkeypatch.setattr(capacity, "trips", lambda rows, offers: asked(rows))
    kept = SETTING.simulate(ROW, "specedge", 12, 0.05)
    broken = SETTING.simulate(ROW, "specedge", 12, math.inf)
    assert plain.p99_ms < 50 < broken.p99_ms
    assert kept.p99_ms <= 1.01 * plain.p99_ms


def test_the_command_says_simulated_and_repeats_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant, value in {
        "SETTLE_S": 2.0,
        "COUNTED_S": 4.0,
        "CROWD": 1,
        "MOST_CLIENTS": 4,
    }.items():
        monkeypatch.setattr(capacity, constant, value)
    file = tmp_path / "rows.jsonl"
    options = ["--pairs", "14B/0.6B", "--tasks", "math", "--objective-ms", "45"]
    found = []
    for seed in ("1", "1", "2"):
        capacity.main(capacity_options([*options, "--seed", seed, "--json", str(file)]))
        assert capsys.readouterr().out.startswith("simulated")
        capacity._point.cache_clear()
        lines = list(map(json.loads, file.read_text(encoding="utf-8").splitlines()))[-3:]
        assert [line["method"] for line in lines] == list(capacity.METHODS)
        assert all(line["capacity"] == "simulated" for line in lines)
        found.append(lines)
    assert found[0] == found[1] != found[2]


def test_an_objective_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        capacity_options(["--objective-ms", "0"])
    assert "more than 0 ms" in capsys.readouterr().err


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from runtime.bench import __main__ as bench

    file, folder = tmp_path / "rows.jsonl", tmp_path / "plots"
    about = {"capacity": "simulated", "pair": "14B/1.7B", "task": "qa"}
    lines = [
        about | {"method": method, "objective_ms": ms, "clients": clients}
        for method in capacity.METHODS
        for ms, clients in ((50.0, 0), (100.0, 80))
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bench.draw(bench.plot_options([str(file), str(folder)]))
    assert (folder / "capacity.png").read_bytes().startswith(b"\x89PNG")
    file.write_text('{"capacity": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: expected a capacity"):
        bench.draw(bench.plot_options([str(file), str(folder)]))


@pytest.mark.parametrize("clients", [1, 2, 8])
def test_offers_give_more_than_taking_turns(monkeypatch: pytest.MonkeyPatch, clients: int) -> None:
    """14B, steps that have room for all."""
    monkeypatch.setattr(capacity, "COUNTED_S", 4.0)
    offering = SETTING.simulate(ROW, "specedge", clients, math.inf)
    asked = SETTING.simulate(ROW, NO_OFFERS, clients, math.inf)
    assert offering.tokens_per_s > (1.15 if clients > 1 else 1.0) * asked.tokens_per_s
    assert offering.p99_ms < asked.p99_ms
