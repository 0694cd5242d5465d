"""The cost curve: learns a true curve, never decreases, shrugs off outliers, follows a change."""

import random
from itertools import pairwise

import pytest

from runtime.server.policy.step_cost import STALE_STEPS, STRETCH, StepCost


def linear(rows: float) -> float:
    return 0.02 + 0.001 * rows


def learnt(rng: random.Random, steps: int = 400, noise: float = 0.0) -> StepCost:
    cost = StepCost()
    for _ in range(steps):
        rows = rng.randint(1, 200)
        cost.observe(rows, 0, linear(rows) * rng.gauss(1, noise))
    return cost


def test_a_straight_line_is_learnt() -> None:
    cost = learnt(random.Random(1), noise=0.05)
    for rows in (3, 10, 40, 100, 200):
        assert cost.step_s(rows) == pytest.approx(linear(rows), rel=0.12)


def test_rows_that_wake_experts_are_learnt() -> None:
    """The first rows of a mixture of experts cost most: 8 of 64 experts each, fewer are new."""

    def woken(rows: int) -> float:
        return 0.002 + 0.05 * (1 - (1 - 8 / 64) ** rows)

    rng, cost = random.Random(4), StepCost()
    for _ in range(400):
        rows = rng.choice((1, 2, 4, 6, 8, 12, 16, 24, 32, 64))
        cost.observe(rows, 0, woken(rows) * rng.gauss(1, 0.03))
    for rows in (1, 2, 5, 10, 16, 32, 64):
        assert cost.step_s(rows) == pytest.approx(woken(rows), rel=0.12)
    slopes_s = [slope_s for _, slope_s in cost.slopes(1)][1:-1]
    assert slopes_s == sorted(slopes_s, reverse=True)


def test_more_rows_never_cost_less() -> None:
    rng = random.Random(2)
    cost = StepCost()
    for _ in range(300):
        cost.observe(rng.randint(1, 500), 0, rng.uniform(0.01, 0.1))
        times_s = [cost.step_s(rows) for rows in range(1, 600, 7)]
        assert all(a <= b + 1e-12 for a, b in pairwise(times_s))


def test_slopes_are_those_of_the_curve() -> None:
    cost = learnt(random.Random(3))
    start = 5.0
    pieces = cost.slopes(start)
    assert pieces[-1][0] == pytest.approx(STRETCH * 180, rel=0.2)
    for end, slope_s in pieces:
        inside = (start + end) / 2
        grown_s = cost.step_s(inside + 0.01) - cost.step_s(inside)
        assert grown_s == pytest.approx(0.01 * slope_s, abs=1e-9)
        start = end


def test_one_outlier_hardly_counts() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.observe(32, 0, 0.05)
    cost.observe(32, 0, 5.0)
    assert cost.step_s(32) < 0.055


def test_a_slower_machine_is_noticed() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.observe(32, 0, 0.05)
    for _ in range(60):
        cost.observe(32, 0, 0.15)
    assert cost.step_s(32) == pytest.approx(0.15, rel=0.02)


def test_a_stale_measurement_is_dropped_but_not_the_smallest() -> None:
    cost = StepCost()
    cost.observe(1, 0, 0.03)
    cost.observe(200, 0, 9.0)  # a first step that compiled something
    for _ in range(STALE_STEPS + 1):
        cost.observe(10, 0, 0.04)
    assert cost.step_s(1) == pytest.approx(0.03)
    assert cost.step_s(200) < 1.0


def test_prompt_rows_are_told_apart() -> None:
    cost = StepCost()
    assert cost.step_s(5) == 0.0
    assert not cost.known
    cost.observe(0, 100, 0.1)
    assert not cost.known
    for _ in range(40):
        cost.observe(8, 0, 0.03)
        cost.observe(8, 100, 0.08)
    assert cost.known
    assert cost.step_s(8) == pytest.approx(0.03)
    assert cost.step_s(8, 200) == pytest.approx(0.13, rel=0.05)
