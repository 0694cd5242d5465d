"""The goals of scheduling, each as a small simulation, and the simulation itself."""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.scheduler import (
    CPU_POINTS,
    PAPER_STEP_S,
    Setting,
    connections,
    crowd,
    newcomer,
    reunion,
    slots_pay,
    two_edges,
    worst_window,
)
from runtime.bench.simulation import Accelerator, Device, Simulation, Trip, expected_accepted
from runtime.server.policy.credits import POLICIES, RoundRobin

ROOT = Path(__file__).parent.parent.parent
QUICK = Setting("drr", edges=1000, seconds=20, seeds=1)


@pytest.mark.parametrize("scenario", [two_edges, crowd, newcomer, connections])
def test_the_default_policy_meets_every_goal(scenario) -> None:
    missed = [figure for figure in scenario(QUICK) if figure.met is False]
    assert not missed


def test_a_crowd_that_asks_at_one_moment_is_not_late() -> None:
    figures = {figure.name: figure for figure in reunion(Setting("drr", 200, 6, 1))}
    assert figures["p99 age, ms"].met
    assert figures["share of capacity"].value > 0.96


def test_slots_pay_wherever_edges_can_draft_meanwhile() -> None:
    missed = [figure for figure in slots_pay(Setting("drr", 100, 10, 1)) if figure.met is False]
    assert not missed


def test_open_shows_what_credits_are_for() -> None:
    figures = {figure.name: figure for figure in crowd(Setting("open", 300, 5, 1))}
    assert figures["longest queue"].value > 200
    assert not figures["p99 age, ms"].met


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_the_accelerator_busy(policy: str) -> None:
    accelerator = Accelerator(((1, 0.05),), max_batch=4)
    rng = random.Random(3)
    devices = [Device(rng.uniform(0.005, 0.05), user=str(n)) for n in range(40)]
    record = Simulation(accelerator, devices, POLICIES[policy]()).run(10, 3)
    assert record.busy_s / record.elapsed_s > 0.98
    assert len(record.ages_s) / record.elapsed_s > 0.97 * 4 / 0.05


def test_the_pipeline_gains_over_its_ablation() -> None:
    rates = []
    for pipelined in (True, False):
        accelerator = Accelerator(((1, PAPER_STEP_S),), max_batch=32)
        devices = [Device(0.01407 + 0.004 * n, user=str(n)) for n in range(8)]
        simulation = Simulation(accelerator, devices, RoundRobin(), pipelined)
        rates.append(simulation.run(60, 20).tokens)
    assert rates[0] > 1.03 * rates[1]


@pytest.mark.every_value
@pytest.mark.parametrize("rtt_s", [0.005, 0.03, 0.1])
@pytest.mark.parametrize("quality", [0.0, 0.4])
@pytest.mark.parametrize(("points", "pass_s"), [(((1, PAPER_STEP_S),), 0.011), (CPU_POINTS, 0.004)])
def test_64_tokens_are_hardly_slower_than_plain_decoding(
    points: tuple[tuple[int, float], ...], pass_s: float, quality: float, rtt_s: float
) -> None:
    accelerator = Accelerator(points, 32)
    plain_s = accelerator.step_s(1)
    device = Device(rtt_s, pass_s, quality)
    for seed in range(3):
        record = Simulation(accelerator, [device], RoundRobin(), seed=seed).run(400 * plain_s)
        assert worst_window(record.trips[0], plain_s) <= 1.05
        assert record.tokens > 0.96 * 400


def test_nothing_is_lost_and_every_round_is_answered() -> None:
    accelerator = Accelerator(((1, 0.03),), max_batch=3, noise=0.1)
    devices = [Device(0.02, jitter=0.5, user=str(n % 3), joins_s=0.1 * n) for n in range(20)]
    record = Simulation(accelerator, devices, RoundRobin()).run(20, 0)
    assert all(trip.verdicts[-1][0] > 18 for trip in record.trips)
    assert sum(trip.tokens for trip in record.trips) == record.tokens


def test_what_an_objective_leaves_is_not_spent_on_drafts_that_cost_everybody_tokens() -> None:
    """They are right every second time, and a plain step takes an eighth of the promise."""
    accelerator = Accelerator(((1, 0.04), (33, 0.056)), 1 << 10)

    def tokens(max_nodes: int) -> int:
        devices = [Device(0.02, quality=0.5, jitter=0.1, max_nodes=max_nodes)] * 24
        return Simulation(accelerator, devices, RoundRobin(), objective_s=0.4).run(12, 6).tokens

    assert tokens(32) > 0.93 * tokens(0)


def test_a_simulation_repeats_itself_exactly() -> None:
    def tokens(seed: int) -> int:
        devices = [Device(0.02, jitter=0.5)] * 5
        return (
            Simulation(Accelerator(((1, 0.05),), 4), devices, RoundRobin(), seed=seed).run(5).tokens
        )

    assert tokens(1) == tokens(1) != tokens(2)


def test_drawn_acceptance_has_the_expected_mean() -> None:
    simulation = Simulation(Accelerator(((1, 0.1),), 1), [Device(0.01)], RoundRobin())
    trip = Trip(Device(0.01), nodes=32, passes=5)
    drawn = [len(simulation._accepted(trip)) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(expected_accepted(32, 5, 0.6), rel=0.05)


def test_more_passes_never_hurt() -> None:
    for quality in (0.0, 0.5, 0.9):
        accepted = [expected_accepted(32, passes, quality) for passes in range(1, 20)]
        assert accepted == sorted(accepted)


def test_steps_follow_the_points() -> None:
    accelerator = Accelerator(((1, 1.0), (5, 2.0), (10, 7.0)), 1)
    assert [accelerator.step_s(rows) for rows in (1, 3, 5, 6, 10, 11)] == pytest.approx(
        [1.0, 1.5, 2.0, 3.0, 7.0, 8.0]
    )


def test_the_worst_window_against_brute_force() -> None:
    rng = random.Random(5)
    for _ in range(30):
        verdicts, now_s = [(0.0, 1)], 0.0
        for _ in range(120):
            now_s += rng.uniform(0.01, 0.3)
            verdicts.append((now_s, rng.randint(1, 5)))
        worst = 0.0
        for start in range(len(verdicts)):
            tokens = 0
            for time_s, count in verdicts[start + 1 :]:
                tokens += count
                if tokens >= 64:
                    worst = max(worst, (time_s - verdicts[start][0]) / (tokens * 0.1))
                    break
        trip = Trip(Device(0.01), verdicts=verdicts)
        assert worst_window(trip, 0.1) == pytest.approx(worst)


def test_the_command_prints_json() -> None:
    command = [sys.executable, "-m", "bench.scheduler", "--quick", "--edges", "100", "--json"]
    run = subprocess.run(
        [*command, "--policy", "drr"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    numbers = json.loads(run.stdout)
    assert numbers["drr: two edges, batch 1: busy"] >= 0.97
