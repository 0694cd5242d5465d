"""When to send, against the optimum that is found by trying every number of passes."""

import math
import random

import pytest

from runtime.edge.draft.pace import Pace, Slot

CHOOSES = Slot(0.0, math.inf)  # the server has nothing else to do


def best_rate(gains: list[float], pass_s: float, wait_s: float) -> float:
    """Of all numbers of passes, the largest expected tokens per second of the round."""
    tokens, best = 1.0, 0.0
    for passes, gain in enumerate([0.0, *gains]):
        tokens += gain
        best = max(best, tokens / (passes * pass_s + wait_s))
    return best


@pytest.mark.parametrize("seed", range(200))
def test_stopping_is_optimal_when_gains_fall(seed: int) -> None:
    rng = random.Random(seed)
    gains = sorted((rng.random() for _ in range(8)), reverse=True)
    pace = Pace(pass_s=rng.uniform(0.001, 0.05), wait_s=rng.uniform(0.001, 0.2))
    tokens, passes = 1.0, 0
    while passes < len(gains) and pace.is_worth_a_pass(
        tokens, gains[passes], passes * pace.pass_s, CHOOSES
    ):
        tokens, passes = tokens + gains[passes], passes + 1
    rate = tokens / (passes * pace.pass_s + pace.wait_s)
    assert rate == pytest.approx(best_rate(gains, pace.pass_s, pace.wait_s))


def test_a_step_that_starts_at_a_known_time_is_not_missed_for_little() -> None:
    pace = Pace(pass_s=0.01, step_s=0.1, wait_s=0.05)
    slot = Slot(0.045, 0.0)
    fitting = [n for n in range(9) if pace.is_worth_a_pass(1.0, 0.5, n * 0.01 + 1e-9, slot)]
    assert fitting[:4] == [0, 1, 2, 3]
    assert 4 not in fitting
    slot = Slot(0.045, 0.006)
    assert pace.is_worth_a_pass(1.0, 0.5, 0.04, slot)
    assert not pace.is_worth_a_pass(1.0, 0.5, 0.042, slot)


def test_a_step_is_given_up_for_much_more_in_the_next_one() -> None:
    """Of a few milliseconds before one step and a hundred more before the next one."""
    pace = Pace(pass_s=0.01, step_s=0.1, wait_s=0.1)
    assert pace.is_worth_a_pass(1.0, 0.8, 0.001, Slot(0.002, 0.0))
    assert not pace.is_worth_a_pass(3.0, 0.3, 0.096, Slot(0.097, 0.0))
    # and once it is missed, all the time before the next one is free
    assert pace.is_worth_a_pass(1.0, 1e-6, 0.011, Slot(0.002, 0.0))
    assert not pace.is_worth_a_pass(1.0, 1e-6, 0.094, Slot(0.002, 0.0))


def test_where_no_step_follows_a_draft_may_not_take_longer_than_it_was_given() -> None:
    pace = Pace(pass_s=0.01, step_s=0.1, wait_s=0.1)
    assert pace.is_worth_a_pass(1.0, 50.0, 0.019, Slot(0.0, 0.03))
    assert not pace.is_worth_a_pass(1.0, 50.0, 0.021, Slot(0.0, 0.03))
    assert not pace.is_worth_a_pass(1.0, 50.0, 0.2, Slot(0.0, 0.03))


@pytest.mark.parametrize("seed", range(200))
def test_a_server_that_waits_is_paid_for_from_when_it_waits(seed: int) -> None:
    """The optimum where only what is drafted after free_s makes the round longer."""
    rng = random.Random(seed)
    gains = sorted((rng.random() for _ in range(8)), reverse=True)
    free_s = rng.uniform(0.0, 0.2)
    pace = Pace(pass_s=rng.uniform(0.001, 0.05), wait_s=rng.uniform(0.001, 0.2))

    def rate(passes: int) -> float:
        return (1 + sum(gains[:passes])) / (max(passes * pace.pass_s, free_s) + pace.wait_s)

    passes = 0
    while passes < len(gains) and pace.is_worth_a_pass(
        1 + sum(gains[:passes]), gains[passes], passes * pace.pass_s, Slot(free_s, math.inf)
    ):
        passes += 1
    assert rate(passes) == pytest.approx(max(map(rate, range(len(gains) + 1))))


def test_free_time_is_used_and_nothing_else_is_wasted() -> None:
    pace = Pace(pass_s=0.01, wait_s=0.05)
    for late_s in (0.0, 0.5, math.inf):
        assert pace.is_worth_a_pass(3.0, 1e-6, 0.0, Slot(0.01, late_s))
        assert not pace.is_worth_a_pass(3.0, 1e-6, 0.001, Slot(0.01, late_s))
    to_come = Slot(math.inf, 0.0)
    assert pace.is_worth_a_pass(3.0, 1e-6, 9.0, to_come)
    assert not pace.is_worth_a_pass(3.0, 0.0, 0.0, to_come)
    assert not pace.is_worth_a_pass(3.0, 0.0, 0.0, Slot(1.0, 0.0))


def test_before_a_wait_is_measured_it_is_a_step_of_the_server() -> None:
    pace = Pace(pass_s=0.01)
    pace.saw_step(0.1)
    assert pace.is_worth_a_pass(5.0, 0.6, 0.0, CHOOSES)
    assert not pace.is_worth_a_pass(5.0, 0.4, 0.0, CHOOSES)
    pace.saw_wait(0.3)
    for _ in range(40):
        pace.saw_step(0.1)
        pace.saw_wait(0.3)
    assert pace.is_worth_a_pass(5.0, 0.4, 0.0, CHOOSES)


def test_a_pass_ahead_must_end_before_the_verdict() -> None:
    pace = Pace(pass_s=0.02)
    assert pace.fits_ahead(5.0)  # nothing is known of verdicts yet
    pace.saw_wait(0.1)
    fitting = [waited_ms for waited_ms in range(-50, 150, 10) if pace.fits_ahead(waited_ms * 1e-3)]
    assert fitting == list(range(-50, 81, 10))


def test_averages_forget() -> None:
    pace = Pace()
    pace.saw_pass(5.0)
    pace.saw_wait(5.0)
    for _ in range(40):
        pace.saw_pass(0.01)
        pace.saw_wait(0.1)
    assert pace.pass_s == pytest.approx(0.01, rel=0.1)
    assert pace.wait_s == pytest.approx(0.1, rel=0.1)
