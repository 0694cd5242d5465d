"""A simulated day: nobody is lost, seeds decide all, and its parts are what they stand for."""

from dataclasses import replace

import numpy as np
import pytest

from bench.internet.day import Day
from bench.internet.prefixes import Prefixes
from bench.internet.replica import ANSWERS, QUANTILES, Curve, curve
from bench.internet.world import HOUR_S, REGIONS, World
from runtime.bench.standin.paper import TABLE_1

SMALL = World(
    edges=2_000, replicas=5, turns=6.0, kv_tokens=60_000, fails_after_s=4 * HOUR_S, most_active=16
)


@pytest.fixture(scope="module")
def flat() -> Curve:
    """600 tokens a second for all answers of a replica together, at most 40 for one."""
    answers = np.array(ANSWERS, float)
    rates = np.minimum(600 / answers, 40)
    paces = np.repeat((1 / rates)[:, None], len(QUANTILES), axis=1)
    return Curve(
        "flat", np.repeat(rates[:, None], len(REGIONS), axis=1), rates / 40, paces, paces, rates > 0
    )


@pytest.mark.parametrize("round_robin", [False, True])
def test_a_day_adds_up(flat: Curve, round_robin: bool) -> None:
    day = Day(SMALL, flat, seed=1, sampled=5, round_robin=round_robin)
    kept = day.run(2 * HOUR_S)
    day.check()
    assert kept.failures > 0
    assert kept.drains > 5 - kept.failures
    assert kept.moved >= kept.cut > 0
    assert kept.ended > 50
    assert kept.tokens.sum() == pytest.approx(kept.edge_tokens.sum())
    assert kept.active.sum() == pytest.approx((kept.answers * np.arange(17)).sum(), rel=0.05)
    assert kept.answers.sum() == pytest.approx(SMALL.replicas * 2 * HOUR_S)
    mean = kept.edge_tokens.sum() / kept.answered
    assert 0.85 * SMALL.answer_tokens < mean < 1.15 * SMALL.answer_tokens
    assert kept.edge_tokens.sum() <= kept.edge_seconds.sum() * 40 * 1.001


def test_seeds_decide_all(flat: Curve) -> None:
    first, again, other = (Day(SMALL, flat, seed).run(HOUR_S / 2).edge_tokens for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_router_finds_chats_again_and_round_robin_does_not(flat: Curve) -> None:
    """With replicas that stay, a chat that goes on later is where its user is sent."""
    world = replace(SMALL, fails_after_s=1e12, upgraded_every_s=1e12, kv_tokens=800_000)
    world = replace(world, edges=400, goes_on=1, sessions_a_day=100.0, turns=2.0)
    found = {}
    for round_robin in (False, True):
        day = Day(world, flat, seed=3, sampled=5, round_robin=round_robin)
        day.run(HOUR_S)
        counts = [prefixes.counts for prefixes in day.prefixes]
        said = sum(count.said_before for count in counts)
        found[round_robin] = sum(count.found for count in counts) / said
    assert found[False] > 0.9
    assert found[True] < found[False] - 0.2


def test_no_more_answers_than_places(flat: Curve) -> None:
    crowd = replace(SMALL, sessions_a_day=200.0, most_active=4)
    day = Day(crowd, flat, seed=1)
    kept = day.run(0.5 * HOUR_S)
    day.check()
    assert kept.waited.sum() > kept.active.sum()
    assert kept.answers[:4].sum() < kept.answers[4]


def test_a_cache_finds_what_it_was_told_until_it_forgets() -> None:
    prefixes = Prefixes(pages=40, page_tokens=16)
    prefixes.begin(edge=1, chat=0, history=0, prompt=100, answer=100)
    prefixes.end(1)
    assert prefixes.counts.found == 0
    prefixes.begin(1, 0, history=200, prompt=10, answer=20)
    assert prefixes.counts.found == 192, "whole pages of what was said"
    prefixes.begin(2, 0, history=0, prompt=500, answer=100)
    assert prefixes.counts.no_room == 1
    prefixes.check()
    prefixes.forget()
    prefixes.end(1)
    prefixes.begin(1, 0, history=200, prompt=10, answer=20)
    assert prefixes.counts.found == 192


def test_a_curve_is_the_policy_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain decoding, whose pace can be reckoned: a step a token, and nobody waits."""
    monkeypatch.setattr("bench.internet.replica.COUNTED_S", 4.0)
    monkeypatch.setattr("bench.internet.replica.ANSWERS", (1, 8))
    row = next(row for row in TABLE_1 if row.pair == "14B/1.7B")
    plain = curve(row, "plain", 0.1, seed=0)
    steps_s = [0.0382, None]
    assert plain.rates[0, 0] == pytest.approx(1 / steps_s[0], rel=0.03)
    assert plain.busy == pytest.approx([1, 1], rel=0.02)
    assert not plain.drafted.any()
    assert plain.rates[1].max() < plain.rates[0, 0]


def test_percentiles_of_a_mixture(flat: Curve) -> None:
    weights = np.zeros(257)
    weights[[8, 256]] = 0.985, 0.015
    assert flat.p99(flat.paces, weights) == pytest.approx(256 / 600)
    weights[[8, 256]] = 0.995, 0.005
    assert flat.p99(flat.paces, weights) == pytest.approx(1 / 40)
    assert flat.carried(0.1, 256) == 60
    assert flat.carried(1e-6, 256) == 0
    assert flat.tokens_per_s(64) == pytest.approx(600)
