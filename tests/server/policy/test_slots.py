"""The foreseen slot against a brute-force queue that runs every arrival."""

import random

import pytest

from runtime.server.policy.slots import Expected, first_slot

STEP_S = 1.0


def served_at(mine_s: float, start_s: float, ahead: int, due_s: list[float], batch: int) -> float:
    """When a tree that comes at `mine_s` is taken, by running the server step by step."""
    arrivals = sorted([*((start_s - 1.0, 0) for _ in range(ahead)), *((d, 0) for d in due_s)])
    arrivals = sorted([*arrivals, (mine_s, 1)])
    now_s = start_s
    while True:
        ready = [item for item in arrivals if item[0] <= now_s]
        if not ready:
            now_s = arrivals[0][0]
            continue
        taken = ready[:batch]
        if (mine_s, 1) in taken:
            return now_s
        for item in taken:
            arrivals.remove(item)
        now_s += STEP_S


@pytest.mark.parametrize("seed", range(300))
def test_a_tree_in_time_for_its_slot_is_taken_then_and_none_sooner(seed: int) -> None:
    rng = random.Random(seed)
    start_s, batch = 10.0, rng.randint(1, 3)
    ahead = rng.randint(0, 5)
    due_s = sorted(round(rng.uniform(10.0, 14.0), 2) for _ in range(rng.randint(0, 4)))
    arrival_s = start_s + rng.choice([0.013, 0.517, 1.517, 2.517])
    slot_s, latest_s = first_slot(arrival_s, start_s, ahead, 0, due_s, batch, lambda trees: STEP_S)
    assert arrival_s <= slot_s <= latest_s
    # who comes as early as can be is not taken before the slot that was foreseen for the latest
    assert served_at(arrival_s, start_s, ahead, due_s, batch) <= slot_s
    assert served_at(slot_s, start_s, ahead, due_s, batch) == pytest.approx(slot_s)
    late_s = latest_s + 0.001
    if latest_s < float("inf") and latest_s not in due_s:
        assert served_at(late_s, start_s, ahead, due_s, batch) > late_s


def test_an_idle_server_waits_for_nobody() -> None:
    assert first_slot(5.0, 1.0, 0, 0, [], 4, lambda trees: 1.0) == (5.0, float("inf"))
    assert first_slot(5.0, 1.0, 0, 0, [7.0], 4, lambda trees: 1.0) == (5.0, 7.0)


def test_plain_requests_keep_the_server_going() -> None:
    slot_s, latest_s = first_slot(5.2, 1.0, 0, 2, [], 4, lambda trees: 1.0)
    assert (slot_s, latest_s) == (6.0, 6.0)


def test_plain_requests_stand_in_line_again_until_the_tree_does() -> None:
    # at 1 one of the four goes with the plain one, at 2 two more, and it has come again behind them
    assert first_slot(1.5, 1.0, 3, 1, [], 2, lambda trees: 1.0)[0] == 3.0
    # one that decodes plainly alone fills every step, but stands behind the tree in the second
    assert first_slot(1.5, 1.0, 0, 1, [], 1, lambda trees: 1.0) == (2.0, 2.0)


def test_a_step_takes_the_time_of_its_trees() -> None:
    """Five trees in line and four places: a step of four, then one of one, which ends in time."""
    slot_s, _ = first_slot(4.5, 0.0, 5, 0, [], 4, lambda trees: float(trees))
    assert slot_s == 5.0


def test_a_long_queue_is_cut_off() -> None:
    slot_s, _ = first_slot(5.0, 1.0, 10**6, 0, [], 1, lambda trees: 1.0)
    assert slot_s == 65.0


@pytest.mark.parametrize("seed", range(20))
def test_expected_trees_stay_in_order_whoever_comes_and_goes(seed: int) -> None:
    """Against sorting them all; some are expected at the same time, and the last come late."""
    rng, expected, times_s = random.Random(seed), Expected(), []
    for _ in range(80):
        times_s.append(float(rng.randrange(20)))
        expected.add(times_s[-1])
        for gone_s in [time_s for time_s in times_s if rng.random() < 0.2]:
            expected.discard(gone_s)
            times_s.remove(gone_s)
        with pytest.raises(AssertionError, match=r"no tree is expected at 0\.5"):
            expected.discard(0.5)
        assert len(expected) == len(times_s)
        for now_s in (-1.0, 7.0, 20.0):
            assert expected.after(now_s) == sorted(t for t in times_s if t > now_s)
