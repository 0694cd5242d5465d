"""Running estimates against closed forms and long averages."""

import random
import statistics
from collections.abc import Sequence

import pytest

from runtime.server.policy.estimators import GAIN, Acceptance, Mean, Rate


def test_the_first_samples_are_averaged_exactly() -> None:
    mean = Mean()
    samples = [3.0, 5.0, 1.0, 7.0]
    for count, sample in enumerate(samples, 1):
        mean.observe(sample)
        assert mean.value == pytest.approx(statistics.mean(samples[:count]))


def test_a_mean_forgets_at_its_gain() -> None:
    mean = Mean()
    for _ in range(100):
        mean.observe(1.0)
    for step in range(1, 30):
        mean.observe(0.0)
        assert mean.value == pytest.approx((1 - GAIN) ** step)


def test_a_prior_weighs_one_sample() -> None:
    mean = Mean(10.0)
    mean.observe(20.0)
    assert mean.value == 15.0


def test_the_lower_bound_holds_for_nearly_all_means() -> None:
    rng = random.Random(1)
    below = 0
    for _ in range(300):
        mean = Mean(gain=1 / 32)
        for _ in range(40):
            mean.observe(rng.gauss(5.0, 2.0))
        below += mean.at_least() > 5.0
    assert below <= 6
    assert Mean().at_least() == -float("inf")


def test_a_rate_is_events_over_time_and_follows() -> None:
    rate = Rate()
    assert rate.per_s == 0.0
    for _ in range(20):
        rate.observe(4, 0.5)
    assert rate.per_s == pytest.approx(8.0)
    for _ in range(200):
        rate.observe(1, 0.5)
    assert rate.per_s == pytest.approx(2.0, rel=0.01)


def tree_of(chances: Sequence[float], rng: random.Random) -> list[int]:
    """Ranks that are accepted of nodes of these chances, each drawn by itself."""
    return [rank for rank, chance in enumerate(chances, 1) if rng.random() < chance]


@pytest.mark.parametrize("nodes", [1, 3, 8, 32, 255])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_acceptance_converges_on_how_good_trees_are(nodes: int, power: float) -> None:
    """Steep or flat: what it says of each size of tree is what such trees bring."""
    chances = [0.8 * rank**-power for rank in range(1, nodes + 1)]
    rng, acceptance = random.Random(nodes), Acceptance()
    seen: dict[int, list[float]] = {size: [] for size in (1, 2, 8, 32, 255) if size <= nodes}
    for number in range(1200):
        acceptance.observe(nodes, tree_of(chances, rng))
        for size, values in seen.items():
            if number > 200:
                values.append(acceptance.accepted(size))
    for size, values in seen.items():
        expected = sum(chances[:size])
        assert statistics.mean(values) == pytest.approx(expected, rel=0.1), size


def test_acceptance_is_the_sum_of_its_nodes() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        for nodes in (0, 1, 2, 7, 64, 255):
            each = [acceptance.node(rank) for rank in range(1, nodes + 1)]
            assert acceptance.accepted(nodes) == pytest.approx(sum(each))
            assert each == sorted(each, reverse=True)
        acceptance.observe(40, [1, 2, 9])


def test_nothing_known_is_the_prior() -> None:
    acceptance = Acceptance(prior=0.6)
    assert [acceptance.node(2**octave) for octave in range(9)] == pytest.approx(
        [0.6 ** (1 + octave) for octave in range(9)]
    )


@pytest.mark.parametrize("prior", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("price", [0.0011, 0.021, 0.11, 0.31, 0.79, 0.91])
def test_the_last_node_above_a_price_is_found_without_search(prior: float, price: float) -> None:
    acceptance = Acceptance(prior)
    brute = sum(acceptance.node(rank) >= price for rank in range(1, 256))
    assert min(acceptance.best_below(price), 255) == brute


def test_acceptance_stays_a_probability() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.observe(1, [1])
    assert 0.95 < acceptance.node(1) <= 1
    for _ in range(200):
        acceptance.observe(32, [])
    assert 0 <= acceptance.node(1) < 0.05
    before = acceptance.accepted(255)
    acceptance.observe(0, [])
    assert acceptance.accepted(255) == before


def test_nodes_that_are_not_sent_any_more_are_tried_again() -> None:
    """Deep ranks were worthless while trees were shallow; that is forgotten in some 100 rounds."""
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.observe(16, [1, 2])
    assert acceptance.node(8) < 0.03
    for _ in range(120):
        acceptance.observe(4, [1, 2, 4])
    assert acceptance.node(8) > 0.15
