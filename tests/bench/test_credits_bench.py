"""The bench of credits: what it makes of a trace, and a few edges on real connections."""

import json
import math
import random
from collections.abc import Iterator

import pytest

from bench import credits
from bench.credits import (
    Edge,
    Real,
    Verified,
    against_open,
    longest_queue,
    recorded,
    row,
    verified,
)
from bench.scheduler import Figure, Setting
from bench.stub_edges import draft_after, text_after
from bench.stub_server import VOCABULARY
from runtime.bench.simulation import Accelerator, Device, Trip

STEP_S, RTT_S, JOINS_S = 0.02, 0.06, 0.5


def a_tree(came_s: float, start_s: float, sent_s: float | None = 0.0) -> Verified:
    return Verified(0, 0, sent_s, came_s, start_s, start_s + 1)


def test_the_longest_queue_against_counting() -> None:
    dice = random.Random(2)
    for _ in range(50):
        came = [float(dice.randrange(40)) for _ in range(dice.randrange(1, 30))]
        trees = [a_tree(came_s, came_s + dice.randrange(12)) for came_s in came]
        plain = [a_tree(came_s, came_s + 30, sent_s=None) for came_s in came]
        counted = max(
            sum(tree.came_s <= now_s <= tree.start_s for tree in trees) for now_s in range(60)
        )
        assert longest_queue(dice.sample(trees + plain, len(trees + plain))) == counted
    assert longest_queue([]) == 0


def test_a_trace_and_what_the_edges_know_make_a_record() -> None:
    devices = [Device(0.01, user="a"), Device(0.01, user="b", joins_s=1.0)]
    edges = [Edge(number, Trip(device)) for number, device in enumerate(devices)]
    edges[0].rounds = [(None, 0.0), (100.5, 0.25)]
    edges[1].rounds = [(None, 0.0)]
    trace = [
        {"start_s": 100.0, "end_s": 100.4, "requests": [["edge:1", 1, 0, 0]]},
        {"start_s": 101.0, "end_s": 101.4, "requests": [["edge:2", 2, 0, 0], ["edge:1", 1, 8, 3]]},
        # of an edge that has gone: it was decoded plainly once more
        {"start_s": 102.0, "end_s": 102.4, "requests": [["edge:2", 2, 0, 0]]},
    ]
    verdicts = list(verified(edges, trace))
    assert [(v.edge, v.accepted, v.sent_s) for v in verdicts] == [
        (0, 0, None),
        (1, 0, None),
        (0, 3, 100.5),
    ]
    assert verdicts[2].came_s == pytest.approx(100.75, abs=1e-3)
    record = recorded(devices, verdicts, start_s=100.0, until_s=2.0, warm_up_s=1.0)
    assert [trip.verdicts for trip in record.trips] == [
        [(pytest.approx(0.4), 1), (pytest.approx(1.4), 4)],
        [(pytest.approx(1.4), 1)],
    ]
    assert record.tokens == 5, "what came before the warm-up had ended does not count"
    assert record.ages_s == pytest.approx([0.9])
    assert record.trees_by_user == {"a": pytest.approx([1.4])}
    assert record.steps_s == pytest.approx([0.4])
    early = recorded(devices, verdicts, start_s=100.0, until_s=1.0, warm_up_s=0.0)
    assert early.tokens == 1
    assert early.trips[1].verdicts == []


@pytest.mark.parametrize("accepted", [0, 1, 5, 31, 32])
def test_the_stub_accepts_of_a_draft_what_was_drawn(accepted: int) -> None:
    for token in range(VOCABULARY):
        tree, text = draft_after(token, 32, accepted), text_after(token, 33)
        assert len(tree.tokens) == 32
        assert list(tree.tokens[:accepted]) == text[:accepted]
        assert tree.tokens[accepted : accepted + 1] != tuple(text[accepted : accepted + 1])


def test_policies_are_compared_with_none() -> None:
    def rate(trees_per_s: float) -> Figure:
        return Figure("9 edges", "trees/s", trees_per_s)

    results = [("open", rate(100), rate(200)), ("drr", rate(99), rate(190))]
    assert [row(*result)[2:] for result in against_open(results)] == [
        ("trees/s, of open's", "0.99", "0.95", ">= 0.98", "yes")
    ]
    assert list(against_open(results[1:])) == []


@pytest.mark.parametrize("policy", ["open", "drr"])
def test_edges_on_real_connections(policy: str) -> None:
    """Two users, of whom one comes later; wrong tokens or lost trees would raise."""
    devices = [Device(RTT_S, user="first", jitter=0.5)] * 8
    devices += [Device(RTT_S, user="second", jitter=0.5, joins_s=JOINS_S)] * 3
    devices += [Device(RTT_S, user="second", quality=0.0)]  # soon the server does without its trees
    real = Real(policy, edges=12, seconds=2.0, seeds=1)
    record = real.run(Accelerator(((1, STEP_S),), max_batch=3), devices, real.seconds)
    assert sum(map(len, record.trees_by_user.values())) == len(record.ages_s) > 0
    assert set(record.trees_by_user) == {"first", "second"}
    assert real.trees[0] >= len(record.ages_s)
    assert min(record.ages_s) >= RTT_S / 2 + STEP_S, "the link delays, and the step takes its time"
    assert record.tokens > len(record.ages_s), "drafts are accepted"
    assert min(record.steps_s) >= STEP_S
    assert len(record.ages_s) <= 3 * len(record.steps_s), "a step has three trees at most"
    for trip in record.trips:
        first_s = trip.verdicts[0][0]
        assert first_s >= trip.device.joins_s + STEP_S
    assert 0 < record.longest_queue <= len(devices)
    assert (record.largest_window == math.inf) == (policy == "open")


def test_the_command_measures_and_simulates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator = Accelerator(((1, STEP_S),), max_batch=3)

    def small(setting: Setting) -> Iterator[Figure]:
        record = setting.run(accelerator, [Device(RTT_S, user="a")] * 6, setting.seconds)
        yield Figure("small", "step, ms", 1e3 * min(record.steps_s), "the stub's")

    monkeypatch.setattr(credits, "SCENARIOS", (small,))
    argv = ["bench.credits", "--policy", "drr", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", [*argv, "--json"])
    credits.main()
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["drr: small: step, ms"] >= 1e3 * STEP_S
    assert numbers["drr: all of these: from step to step, ms"] > 1e3 * STEP_S
    assert numbers["drr: all of these: trees sent"] > 0
    monkeypatch.setattr("sys.argv", [*argv, "--edges", "3"])
    with pytest.raises(SystemExit):
        credits.main()
    assert "a crowd has 20 at least" in capsys.readouterr().err
