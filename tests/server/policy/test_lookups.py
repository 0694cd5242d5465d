"""What an edge that looks up its drafts costs a text where whatever it finds is wrong."""

from dataclasses import dataclass
from itertools import accumulate
from random import Random

import pytest

from runtime.bench.simulation import Accelerator, Device, Simulation, Trip
from runtime.server.policy.credits import RoundRobin
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Mean
from runtime.server.policy.pipeline import Grant
from runtime.server.request import NO_NODES
from runtime.tree import Tree
from runtime.wire.messages import Offer

CPUS = {
    "dear rows": Accelerator(((1, 0.0095), (2, 0.0125), (3, 0.014), (5, 0.017), (9, 0.022)), 32),
    "cheap rows": Accelerator(((1, 0.031), (4, 0.0312), (8, 0.0414), (16, 0.0536)), 32),
}
WRONG, NODES, LOOKING_UP_S = 1 << 30, 5, 0.0004


@dataclass
class Copying(Trip):
    """The text counts up. An offer has the next token right, and those after it or none of them."""

    makes_offers: bool = True
    is_right: bool = True
    last: int = 0  # token
    taken: Tree = NO_NODES

    def text(self, last: int, tokens: int) -> list[int]:
        self.last = last + tokens
        return [last + 1 + place for place in range(tokens)]

    def _following(self) -> Tree:
        first = self.last + 1
        tokens = [first + place for place in range(NODES)]
        if not self.is_right:
            tokens[1:] = [WRONG] * (NODES - 1)
        return Tree(tuple(tokens), tuple(range(NODES)))

    def offer(self) -> Offer | None:
        self.sent_s = self.received_s + LOOKING_UP_S
        tree = self._following()
        return Offer(1, 1 + self.tokens, tree.tokens, tree.parents)

    def take(self, tree: Tree) -> None:
        super().take(tree)
        self.taken = tree

    def draft(self, grant: Grant, granted_s: float) -> None:
        self.taken = self._following().best(grant.max_nodes)
        if not self.is_right:  # asked, it knows as little
            self.taken = Tree((WRONG,) * len(self.taken), self.taken.parents)
        self.nodes, self.sent_s = len(self.taken), granted_s + LOOKING_UP_S

    def luck(self, quality: float, rng: Random) -> list[int]:
        path = self.taken.along(range(self.last + 1, self.last + 1 + NODES))
        return self.taken.ranks(path)


@dataclass
class Silent(Copying):
    """It finds nothing, and says nothing unless it is asked."""

    def offer(self) -> Offer | None:
        return None

    def draft(self, grant: Grant, granted_s: float) -> None:
        self.taken, self.nodes, self.sent_s = NO_NODES, 0, granted_s + LOOKING_UP_S


def written(cpu: Accelerator, rtt_s: float, is_right: bool, edge: EdgeProfile) -> Copying:
    """A few seconds of a text, of which the server knows the edge."""
    trip = Copying(Device(rtt_s), is_right=is_right)
    return let_write(cpu, trip, edge)


def let_write(cpu: Accelerator, trip: Copying, edge: EdgeProfile) -> Copying:
    """The same of this trip."""
    simulation = Simulation(cpu, [trip.device], RoundRobin(), trip=lambda _: trip)
    simulation.requests[0].edge = edge
    simulation.run(5.0)
    return trip


def speed(cpu: Accelerator, trip: Copying, tokens: int) -> float:
    """Of so many tokens, by that of plain decoding."""
    start_s, _ = trip.verdicts[0]
    done = [*accumulate(count for _, count in trip.verdicts[1:])]
    last = next(place for place, count in enumerate(done) if count >= tokens)
    return done[last] * cpu.step_s(1) / (trip.verdicts[last + 1][0] - start_s)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("rtt_s", [0.0006, 0.002, 0.02])
def test_what_one_text_repeats_is_not_expected_of_the_next(cpu: str, rtt_s: float) -> None:
    """Of 48 tokens of which all that is looked up is wrong; the edge has just copied a text."""
    stranger = EdgeProfile.of_offers()
    stranger.max_nodes, stranger.rtt_s = 32, Mean(rtt_s)
    copied = written(CPUS[cpu], rtt_s, True, stranger)
    assert speed(CPUS[cpu], copied, 200) > 1.2
    other = written(CPUS[cpu], rtt_s, False, stranger.at_next_request(32))
    assert speed(CPUS[cpu], other, 48) > 0.97


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("rtt_s", [0.0006, 0.005, 0.015, 0.04])
def test_a_stranger_that_finds_nothing_costs_nothing_until_that_is_little(
    cpu: str, rtt_s: float
) -> None:
    """No offer has ever come from it: it may have no draft, or one that takes too long."""
    stranger = EdgeProfile.of_offers()
    stranger.max_nodes, stranger.rtt_s = 32, Mean(rtt_s)
    trip = let_write(CPUS[cpu], Silent(Device(rtt_s)), stranger)
    assert speed(CPUS[cpu], trip, 16) > 0.98
    assert min(speed(CPUS[cpu], trip, tokens) for tokens in range(17, 140)) > 0.97


def test_an_edge_whose_offers_bring_nothing_is_asked_until_it_is_known_to_draft_at_once() -> None:
    """One that takes time may have too little of it for an offer, and enough where it is asked."""
    slow, at_once = EdgeProfile.of_offers(), EdgeProfile.of_offers()
    assert slow.is_at_once is None
    slow.offer_came(0.015)
    assert slow.is_at_once, "its round trip is not known yet"
    slow.pinged(0.005)
    slow.offer_came(0.015)
    at_once.offer_came(at_once.rtt_s.value + LOOKING_UP_S)
    for edge in (slow, at_once):
        edge.verdict_s = 0.0
        assert not edge.is_worth_asking(0.03)
        for verdict in range(20):
            edge.decided(asked=False)
            edge.judged(accepted=False)
            edge.offered(())
            assert edge.is_worth_asking(0.03) is (edge is slow and edge.rests), verdict
        assert edge.rests
    for _ in range(2):
        slow.arrived(4, 0.0005, now_s=1.0)
    assert not slow.is_worth_asking(0.03), "it is quick after all"


@pytest.mark.parametrize("edges", [1, 2, 4, 16])
def test_offers_too_small_to_miss_steps_for_are_why_no_steps_are_missed(edges: int) -> None:
    """All that is offered is right, and less than what steps chosen ahead would cost.

    So steps are not chosen ahead, once that is seen, and everybody's offers are taken along.
    """
    step_s = 0.1
    accelerator = Accelerator(((1, step_s),), max_batch=32)
    trips = [Copying(Device(0.014, max_nodes=NODES)) for _ in range(edges)]
    waiting = iter(trips)
    devices = [trip.device for trip in trips]
    simulation = Simulation(accelerator, devices, RoundRobin(), trip=lambda _: next(waiting))
    record = simulation.run(10.0, 2.0)
    # a token is decoded on an offer's way, so one less is taken along; the next offer is made
    # before that step is over, and nothing of it is left behind what the step brings: 5, 1, 5, 1
    assert record.tokens >= 0.95 * edges * (1 + NODES) / 2 * record.elapsed_s / step_s
