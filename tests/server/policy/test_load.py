"""What steps were like, of steps whose cost is a straight line: so all of it can be reckoned."""

import pytest

from runtime.server.policy.load import Load

TREES, ROWS, TOKENS = 3, 12, 6  # of each step


def cost_s(rows: float) -> float:
    return 0.01 + 0.001 * rows


def run(load: Load, now_s: float, steps: int) -> float:
    """Steps one behind the other; when the last has ended."""
    for _ in range(steps):
        now_s += cost_s(ROWS)
        load.step_ended(TREES, ROWS, 0, TOKENS, cost_s(ROWS), now_s)
    return now_s


@pytest.fixture
def load() -> Load:
    """One that knows what steps cost, and has had some for as many requests as trees."""
    made = Load(max_batch=4, max_step_nodes=64)
    made.cost.learn([(rows, cost_s(rows)) for rows in (1, 2, 4, 8, 16, 32, 64)])
    for _ in range(TREES):
        made.opened(1000.0)
    run(made, 1000.0, 50)
    return made


def test_a_tree_stands_in_a_step_beside_those_of_others(load: Load) -> None:
    beside = (TREES - 1) * ROWS / TREES
    for nodes in (0, 1, 5, 20):
        assert load.step_with_s(nodes) == pytest.approx(cost_s(beside + 1 + nodes), rel=0.02)
    assert load.fair_nodes == 64 // TREES - 1


def test_a_row_costs_the_tokens_of_its_time(load: Load) -> None:
    per_s = TOKENS / cost_s(ROWS)
    for rows in (1, 4, 20):
        assert load.price(rows) == pytest.approx(0.001 * rows * per_s, rel=0.05)


def test_time_without_requests_counts_for_no_rate(load: Load) -> None:
    before = load.price(4)
    for _ in range(TREES):
        load.closed()
    load.opened(9000.0)
    run(load, 9000.0, 1)
    assert load.price(4) == pytest.approx(before, rel=0.01)


def test_where_requests_share_steps_each_waits_for_its_own(load: Load) -> None:
    plain_s = load.plain_s
    assert (load.steps_for_all, load.is_oversubscribed) == (1, False)
    assert plain_s == pytest.approx(load.step_with_s(0))
    assert load.all_plain_s == pytest.approx(cost_s(TREES), rel=0.02)
    for _ in range(2):
        load.opened(2000.0)
    assert (load.steps_for_all, load.is_oversubscribed) == (2, True)
    assert load.plain_s == pytest.approx(2 * plain_s)
    assert load.all_plain_s == pytest.approx(2 * cost_s(4), rel=0.02)
    load.closed()
    assert (load.steps_for_all, load.is_oversubscribed) == (1, False)


def test_steps_that_become_dearer_are_noticed(load: Load) -> None:
    now_s = 3000.0
    for _ in range(200):
        now_s += 2 * cost_s(ROWS)
        load.step_ended(TREES, ROWS, 0, TOKENS, 2 * cost_s(ROWS), now_s)
    assert load.cost.step_s(ROWS) == pytest.approx(2 * cost_s(ROWS), rel=0.05)


def test_as_many_trees_fit_as_have_room_with_their_rows(load: Load) -> None:
    assert load.batch == 4, "the most that a step may have"
    for step in range(400):
        load.step_ended(TREES, 60, 0, TOKENS, cost_s(60), 4000.0 + step)
    assert load.batch == 64 // (60 // TREES)
