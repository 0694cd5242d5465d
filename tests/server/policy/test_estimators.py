"""Running estimates against closed forms and long averages."""

import random
import statistics

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


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("nodes", [1, 8, 32, 255])
def test_acceptance_converges_on_trees_of_its_own_model(chance: float, nodes: int) -> None:
    truth = Acceptance()
    truth.chance = chance
    expected = truth.accepted(nodes)
    low, high = int(expected), int(expected) + 1
    rng = random.Random(nodes)
    acceptance = Acceptance()
    seen = []
    for _ in range(600):
        acceptance.observe(nodes, high if rng.random() < expected - low else low)
        seen.append(acceptance.accepted(nodes))
    assert statistics.mean(seen[200:]) == pytest.approx(expected, abs=0.12)


def test_acceptance_is_the_sum_of_its_nodes() -> None:
    acceptance = Acceptance()
    for nodes in (0, 1, 7, 64, 255):
        each = [acceptance.node(rank) for rank in range(1, nodes + 1)]
        assert acceptance.accepted(nodes) == pytest.approx(sum(each))
        assert each == sorted(each, reverse=True)
    assert acceptance.node(8) == pytest.approx(acceptance.chance**4)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("price", [0.0011, 0.021, 0.11, 0.31, 0.79, 0.91])
def test_the_last_node_above_a_price_is_found_without_search(chance: float, price: float) -> None:
    acceptance = Acceptance()
    acceptance.chance = chance
    brute = sum(acceptance.node(rank) >= price for rank in range(1, 256))
    assert min(int(acceptance.best_below(price)), 255) == brute


def test_acceptance_stays_a_probability() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.observe(1, 1)
    assert acceptance.chance <= 0.95
    for _ in range(200):
        acceptance.observe(32, 0)
    assert 0.02 <= acceptance.chance < 0.1
    before = acceptance.chance
    acceptance.observe(0, 0)
    assert acceptance.chance == before
