"""How many nodes are worth their rows: near the best of all numbers, whatever a step's curve is."""

import random
from functools import cache

import pytest

from runtime.server.policy.budget import (
    KNOWN_ROUNDS,
    does_better_unasked,
    nodes_to_grant,
    nodes_to_take,
    only_loses,
    worthwhile_nodes,
)
from runtime.server.policy.edge_profile import KNOWN, EdgeProfile
from runtime.server.policy.estimators import Acceptance, Mean
from runtime.server.policy.load import Load

MOST_NODES = 63


def of_memory(rows: int) -> float:
    """Weights are read once for up to 8 rows; from then on arithmetic costs."""
    return 0.03 + 0.0005 * max(0, rows - 8)


def of_experts(rows: int) -> float:
    """Every row wakes 8 of 64 experts, whose weights are read: the first rows cost most."""
    return 0.002 + 0.0512 * (1 - (1 - 8 / 64) ** rows) + 0.0001 * rows


@pytest.mark.parametrize("step_s", [of_memory, of_experts])
@pytest.mark.parametrize("chance", [0.3, 0.5, 0.7, 0.85])
def test_the_rate_of_tokens_comes_near_the_best(step_s, chance):
    load, edge, rng = Load(16, 256), EdgeProfile(MOST_NODES), random.Random(1)
    edge.acceptance = Acceptance(chance)
    load.opened(0.0)
    now_s, nodes = 0.0, 0
    for step in range(400):
        nodes = rng.choice((0, 1, 2, 4, 8, 16, 32, 63)) if step < 200 else nodes
        tokens, took_s = 1 + edge.acceptance.accepted(nodes), step_s(1 + nodes)
        now_s += took_s
        load.step_ended(1, 1 + nodes, 0, tokens, took_s, now_s)
        nodes = worthwhile_nodes(edge.acceptance, MOST_NODES, load)

    def rate(n: int) -> float:
        return (1 + edge.acceptance.accepted(n)) / step_s(1 + n)

    assert rate(nodes) > 0.97 * max(map(rate, range(MOST_NODES + 1)))


@cache
def among_plain_ones(requests: int, row_s: float) -> Load:
    """A server of so many requests that all decode plainly; a step takes 40 ms, and its rows."""
    load = Load(requests, 1 << 16)
    load.cost.learn((rows, 0.04 + row_s * rows) for rows in (1, 8, 64, 512, 4096) for _ in range(4))
    for _ in range(requests):
        load.opened(0.0)
    step_s = 0.04 + row_s * requests
    for step in range(1, 80):
        load.step_ended(requests, requests, 0, requests, step_s, step * step_s)
    return load


def drafting(nodes: int, accepted: list[int], round_s: float, rounds: int = 100) -> EdgeProfile:
    """An edge whose rounds were all alike."""
    edge = EdgeProfile(MOST_NODES)
    for _ in range(rounds):
        edge.sent_nodes.observe(nodes)
        edge.round_s.observe(round_s)
        edge.acceptance.observe(nodes, accepted)
    return edge


def test_drafts_only_lose_where_the_server_and_the_request_have_fewer_tokens_a_second() -> None:
    """Reckoned with the steps themselves: one drafts among many that decode plainly."""
    rng, seen = random.Random(2), set()
    for _ in range(300):
        requests, row_s = rng.choice((8, 64, 256)), rng.choice((0.0001, 0.0003, 0.001))
        nodes, steps = rng.choice((1, 2, 4, 8)), rng.randint(1, 4)
        accepted = rng.randint(0, nodes)

        def step_s(rows: int, row_s: float = row_s) -> float:
            return 0.04 + row_s * rows

        plain = requests / step_s(requests)
        round_s = (steps - 1) * step_s(requests - 1) + step_s(requests + nodes)
        server = ((requests - 1) * steps + 1 + accepted) / round_s / plain
        own = (1 + accepted) / round_s / (plain / requests)
        if abs(own - 1) < 0.03 or abs(server - 1) < 0.1 / requests:
            continue  # too near to tell
        edge = drafting(nodes, list(range(1, accepted + 1)), round_s)
        both = own < 1 and server < 1
        assert only_loses(edge, among_plain_ones(requests, row_s)) is both
        seen.add((own < 1, server < 1))
    assert seen == {(True, True), (False, True), (False, False)}


def test_nothing_is_said_of_drafts_that_were_hardly_tried() -> None:
    load = among_plain_ones(256, 0.0003)
    hopeless = [drafting(8, [], 1.0, rounds) for rounds in (KNOWN_ROUNDS - 1, KNOWN_ROUNDS)]
    assert [only_loses(edge, load) for edge in hopeless] == [False, True]


def plain(requests: int = 1, max_step_nodes: int = 256) -> Load:
    """A machine on which rows up to 8 cost nothing and plain decoding takes 30 ms."""
    load = Load(16, max_step_nodes)
    for _ in range(requests):
        load.opened(0.0)
    load.cost.learn((rows, of_memory(rows)) for rows in (1, 4, 8, 16, 64))
    for step in range(8):
        load.step_ended(1, 1, 0, 1, 0.03, 0.03 * (step + 1))
    return load


def test_an_edge_that_makes_offers_is_asked_where_the_way_is_short_beside_its_luck():
    assert EdgeProfile(32).is_worth_asking(0.03), "it has no other way to be heard"
    edge = EdgeProfile.of_offers()
    edge.rtt_s = Mean(0.006)  # a fifth of a token
    edge.draft_s.observe(0.0)
    edge.was_right = True
    assert edge.is_worth_asking(0.03)
    for _ in range(40):
        edge.judged(accepted=False)
    assert not edge.is_worth_asking(0.03), "it is never right"
    for _ in range(40):
        edge.judged(accepted=edge.was_right is False)  # every second time, after being wrong
    edge.was_right = False
    assert edge.is_worth_asking(0.03)
    edge.was_right = True
    assert not edge.is_worth_asking(0.03), "and never twice"


def test_an_offer_may_cost_what_is_left_to_lose_and_must_pay_for_steps_that_are_missed():
    edge, load = EdgeProfile(MOST_NODES), plain()
    edge.offers = Acceptance(0.3)
    assert nodes_to_take(edge, load, misses_steps=False) >= 7, "rows that cost nothing"
    while edge.trial.most_tokens:
        edge.trial.nothing_drafted(1.5)
    assert nodes_to_take(edge, load, misses_steps=False) >= 7, "whom it is no use to ask may offer"
    while edge.trial.slack_tokens:
        edge.trial.drafted(1, 1.9)
    assert load.step_with_s(nodes_to_take(edge, load, misses_steps=False)) <= 0.03 * 1.005 + 1e-9
    assert nodes_to_take(edge, load, misses_steps=True) == 0, "less than two tokens for two steps"
    edge.offers = Acceptance(0.9)
    assert nodes_to_take(edge, load, misses_steps=True) > 0


def knowing(gained: float, round_s: float, asked: float, load: Load) -> EdgeProfile:
    """An edge whose offers brought so many tokens a step, and its drafts `asked` in `round_s`."""
    edge = EdgeProfile.of_offers()
    edge.max_nodes = MOST_NODES
    for _ in range(KNOWN):
        edge.gained.observe(gained)
        edge.taken.observe(4)
        edge.round_s.observe(round_s)
        edge.sent_nodes.observe(MOST_NODES)
        edge.acceptance.observe(MOST_NODES, range(1, 1 + round(asked)))
    return edge


def test_one_that_is_alone_goes_by_what_offers_and_drafts_have_given() -> None:
    load = plain()
    for gained in (0.5, 1.0, 2.0):
        for round_s in (0.03, 0.06, 0.12):
            edge = knowing(gained, round_s, 4, load)
            asked = (1 + edge.acceptance.accepted(MOST_NODES)) / round_s
            unasked = (1 + gained) / load.step_with_s(4)
            assert does_better_unasked(edge, load) == (unasked >= asked)
    edge.round_s, edge.draft_s = Mean(), Mean(0.01)
    edge.foreseen.observe(2 * gained)
    assert does_better_unasked(edge, load), "for a longer round"
    edge.foreseen = Mean(12.0)
    assert not does_better_unasked(edge, load), "its offers tell what it would send"
    assert not does_better_unasked(EdgeProfile(MOST_NODES), load), "it makes none"


def test_an_edge_whose_offers_bring_nothing_rests_until_it_is_tried_anew() -> None:
    edge = EdgeProfile.of_offers()
    for verdict in range(KNOWN + 1):
        assert not edge.rests, f"nothing is known after {verdict} verdicts"
        edge.decided(asked=False)
        edge.nodes = 4
        edge.offered(())
    assert edge.rests
    edge.forget()
    assert not edge.rests
    for verdict in range(200):
        edge.offered((1,) if verdict % 6 == 0 else ())
        assert not edge.rests, "a token in six steps"


def test_offers_are_the_way_where_steps_follow_each_other_and_have_room_for_all() -> None:
    worse = knowing(0.2, 0.03, 4, plain())
    assert not does_better_unasked(worse, plain())
    assert does_better_unasked(worse, plain(requests=16)), "a tree would miss a step"
    assert not does_better_unasked(worse, plain(requests=17)), "who waits for a turn can draft"
    resting = knowing(0.0, 0.03, 4, plain())
    assert not does_better_unasked(resting, plain(requests=16)), "its offers are of no use"


def far_edge(draft_s: float) -> EdgeProfile:
    """One that drafts up to 7 nodes, all worth their rows, for so long, over 20 ms."""
    edge = EdgeProfile(7)
    edge.acceptance, edge.rtt_s, edge.draft_s = Acceptance(0.7), Mean(0.02), Mean(draft_s)
    return edge


@pytest.mark.parametrize(
    ("draft_s", "nodes"),
    [(0.02, 7), (0.07, 7), (0.08, 3), (0.16, 3), (0.18, 1), (0.5, 1), (0.53, 0), (5.0, 0)],
)
def test_nodes_are_halved_until_their_round_takes_no_longer_than_is_risked(draft_s, nodes):
    """Of the 4.1 tokens of 30 ms that a trial begins with, a step and the way leave 73 ms; a share
    of the nodes takes that share of the usual time."""
    assert nodes_to_grant(far_edge(draft_s), plain()) == nodes


def test_a_draft_is_expected_to_bring_what_as_many_nodes_bring_as_come():
    """An edge that was faster and now sends one node of those that it may."""
    load, found = plain(), []
    for sent in (7, 1):
        edge = far_edge(1.0)
        for _ in range(50):
            edge.trial.expect(3.0)
            edge.trial.drafted(4, 1.5)
            edge.sent_nodes.observe(sent)
            edge.round_s.observe(2 * load.plain_s)
        found.append(nodes_to_grant(edge, load) > 0)
    assert found == [True, False], "1.7 tokens in the time of 2, and more of more nodes"


def test_a_step_has_a_row_for_the_root_of_an_offer():
    edge = EdgeProfile(MOST_NODES)
    edge.offers = Acceptance(0.9)
    assert nodes_to_take(edge, plain(max_step_nodes=6), misses_steps=False) == 5


def test_who_is_asked_now_is_heard_before_its_offers_are_preferred():
    edge, load = EdgeProfile.of_offers(), plain()
    for _ in range(KNOWN):
        edge.gained.observe(0.5)
    assert does_better_unasked(edge, load), "of its drafts nothing is known but that they take time"
    edge.asked = True
    assert not does_better_unasked(edge, load)
