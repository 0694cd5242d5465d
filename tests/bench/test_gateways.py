"""Gateways that meter credits: the feedback, the gate, and what the pages say of both."""

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from bench.gateways import __main__ as command
from bench.gateways.daemons import Measured, gateways
from bench.gateways.feedback import Feedback
from bench.gateways.gated import Gated, Gateway
from bench.gateways.scenarios import Setting, Site, greedy, newcomer, share, trees, unequal, users
from bench.gateways.schemes import DRR, SCHEMES, XPASS, Scheme, gateway_of
from bench.gateways.simulated import Simulated
from bench.scheduler import Figure
from runtime.server.policy.window import Place
from runtime.server.request import Request
from runtime.wire.messages import Open


def simulated(scheme: Scheme, seconds: float = 8.0) -> Simulated:
    return Simulated(scheme, 100, seconds, near_s=0.004, seed=0)


def values(scenario: Callable[[Setting], Iterator[Figure]], scheme: Scheme) -> dict[str, Figure]:
    return {figure.name: figure for figure in scenario(simulated(scheme))}


def made(key: int, user: str) -> Request:
    """A request of which only its key and its user matter."""
    return Request(key, Open(1, 0, 0.0, 1.0, 0.0, 0, 1, 1, ()), 9, [0], user=user)


def test_a_rate_rises_to_capacity_without_loss_and_falls_to_what_it_got_with_it() -> None:
    offered = Feedback(per_s=10.0, most_per_s=100.0)
    offered.update(granted=5, lost=0, period_s=0.5)
    assert offered.per_s == pytest.approx(10 + 0.5 * 90)
    for _ in range(12):
        offered.update(granted=25, lost=0, period_s=0.5)
    assert offered.per_s == pytest.approx(100.0, rel=0.01)
    offered.update(granted=20, lost=30, period_s=0.5)
    assert offered.per_s == pytest.approx(40.0, rel=0.01)
    offered.update(granted=2, lost=30, period_s=0.5)
    assert offered.per_s == pytest.approx(4 * (1 + 0.6 * 0.125), rel=0.01)
    offered.update(granted=0, lost=30, period_s=0.5)
    assert offered.per_s == 100 / 256


@pytest.mark.parametrize("flows", [2, 3, 8])
def test_flows_of_one_loss_share_alike_in_the_fluid_limit(flows: int) -> None:
    """A link that passes the same share of what each offers: what the paper's feedback is for."""
    dice = random.Random(flows)
    rates = [Feedback(dice.uniform(0.01, 1.0), most_per_s=1.0) for _ in range(flows)]
    passed = [0.0] * flows
    for period in range(600):
        share_passed = min(1.0, 1 / sum(rate.per_s for rate in rates))
        for number, rate in enumerate(rates):
            granted, offered = share_passed * rate.per_s, rate.per_s
            passed[number] += granted if period >= 200 else 0.0
            rate.update(granted, offered - granted, period_s=1.0)
    assert sum(passed) >= 0.95 * 400
    assert min(passed) >= 0.9 * sum(passed) / flows


class Crowd:
    """Sessions behind two gateways, and steps that take what the window let through.

    Recounts everything that the gate and the gateways say of themselves.
    """

    def __init__(self, seed: int, gate_offers: int) -> None:
        dice = self.dice = random.Random(seed)
        self.gateways = [
            Gateway(dice.uniform(0, 0.1), Feedback(dice.uniform(1, 40), 40), 0.1, seed % 2 == 0)
            for _ in range(2)
        ]
        self.credits = Gated(self.gateways, gateway_of, gate_offers, seed)
        self.requests: dict[int, Request] = {}
        self.wanting: set[int] = set()
        self.served = Counter[str]()
        self.begun = 0

    def add(self, key: int, user: str) -> None:
        self.requests[key] = made(key, user)
        self.credits.opened(self.requests[key])
        self.want(key)

    def want(self, key: int) -> None:
        self.credits.want(self.requests[key])
        self.wanting.add(key)

    def remove(self, key: int) -> None:
        self.credits.closed(self.requests.pop(key))
        self.wanting.discard(key)

    def give(self, now_s: float) -> None:
        """At once; the trees are there at once too, for a step that is not the next always."""
        for request in self.credits.give(now_s, self.place):
            assert request.key in self.wanting, "a credit for one who wants none, or has ended"
            self.wanting.remove(request.key)
            self.served[request.user] += 1
        assert len(self.credits.window) <= self.credits.window.size
        assert self.credits.wanted == bool(self.wanting)
        self.credits.window.check()

    def place(self, request: Request) -> Place:
        behind = request.key % 2
        return Place(self.begun + 1 + behind, 1 + behind, batch=4)

    def step(self) -> None:
        """Takes all that are for it; they want again."""
        self.begun += 1
        for request in self.requests.values():
            if request.has_credit and request.credit.step <= self.begun:
                self.credits.window.release(request)
                self.want(request.key)


@pytest.mark.parametrize("gate_offers", [1, 8])
def test_credits_never_outnumber_places_and_everybody_is_served(gate_offers: int) -> None:
    for seed in range(6):
        crowd = Crowd(seed, gate_offers)
        now_s, next_step_s, coming = 0.0, 0.1, iter(range(1000))
        for key in range(6):
            crowd.add(next(coming), f"{key % 2}-{key % 3}")
        while now_s < 20:
            crowd.give(now_s)
            now_s = min(crowd.credits.wake_s, next_step_s)
            if now_s == next_step_s:
                crowd.step()
                next_step_s += 0.1
                if crowd.dice.random() < 0.05:
                    crowd.remove(crowd.dice.choice(sorted(crowd.requests)))
                    crowd.add(next(coming), f"{crowd.dice.randrange(2)}-{crowd.dice.randrange(3)}")
        for number, gateway in enumerate(crowd.gateways):
            users = [r.user for r in crowd.requests.values() if gateway_of(r.user) == number]
            assert gateway.requests == Counter(users)
            assert gateway.flows == (max(len(set(users)), 1) if gateway.per_user else 1)
        here = {request.user for request in crowd.requests.values()}
        assert all(crowd.served[str(user)] for user in here), "somebody starves"
        offers = sum(gateway.offers for gateway in crowd.gateways)
        assert offers >= crowd.served.total(), "a credit that nobody offered"


def test_a_gateway_goes_round_its_users_and_a_dropped_offer_is_its_users_first_again() -> None:
    gateway = Gateway(0.0, Feedback(10, 10), period_s=1e6)
    credits = Gated([gateway], gateway_of, gate_offers=2)
    keys = dict.fromkeys(range(8), "0-a") | {8: "0-b"}
    requests = {key: made(key, user) for key, user in keys.items()}
    for request in requests.values():
        credits.opened(request)
        credits.want(request)
    begun, given, now_s = 0, [], 0.0
    while credits.wanted:
        given += [r.key for r in credits.give(now_s, lambda _: Place(begun + 1, 1, 1))]  # noqa: B023
        for request in requests.values():
            credits.window.release(request)
        begun, now_s = begun + 1, now_s + 1.0
    assert given.index(8) <= 2, "the other user waits for all of the first"
    given.remove(8)
    assert given == list(range(8))
    assert gateway.offers == gateway.granted + gateway.lost == 9 + gateway.lost


def test_what_the_page_says_of_gateways() -> None:
    """The server's own round meets the goals; gateways know too little to."""
    assert all(figure.met for figure in values(unequal, DRR).values())
    assert all(figure.met for figure in values(newcomer, DRR).values())
    assert values(greedy, DRR)["share of the other"].met
    assert values(unequal, XPASS)["share of the 96"].value < 0.6
    assert values(greedy, XPASS)["share of the other"].value < 0.1


def test_sessions_of_a_gateway_that_leaves_end() -> None:
    record = simulated(DRR).run(
        Site((0.004, 0.004), leaves=1), [*users(0, 40), *users(1, 40)], 14.0, 9.0
    )
    before, after = trees(record, 9.0, 10.0), trees(record, 12.0, 14.0)
    assert 0.4 < share(before, 1) < 0.6
    assert after[1] == 0
    assert after[0] > 1.8 * before.total()


def test_the_command_reports_every_scheme(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(setting: Setting) -> Iterator[Figure]:
        record = setting.run(Site((0.01, 0.01)), [*users(0, 8), *users(1, 8)], 2.0, 0.5)
        yield Figure("small", "steps", len(record.steps_s), "> 30", len(record.steps_s) > 30)

    monkeypatch.setattr(command, "SCENARIOS", (small,))
    monkeypatch.setattr("sys.argv", ["bench.gateways", "--draws", "2", "--json"])
    command.main()
    numbers = json.loads(capsys.readouterr().out)
    assert [numbers[f"{scheme.name}: small: steps"] > 10 for scheme in SCHEMES] == [True] * 4
    monkeypatch.setattr("sys.argv", ["bench.gateways", "--draws", "1"])
    command.main()
    assert " !" in capsys.readouterr().out, "the goal is missed"
    monkeypatch.setattr("sys.argv", ["bench.gateways", "--edges", "3"])
    with pytest.raises(SystemExit):
        command.main()
    assert "a crowd has 100 at least" in capsys.readouterr().err


def namespaces_work() -> bool:
    name = f"specedge-test-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "delete", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def test_edges_come_by_the_daemons_of_two_namespaces() -> None:
    pytest.importorskip("runtime.stack._stack", reason="the stack is for Linux alone")
    if not namespaces_work():
        pytest.skip("no network namespaces here: root and iproute2 are needed")
    with gateways(2, rtt_s=0.03) as ways:
        measured = Measured(XPASS, ways, seconds=2.0)
        record = measured.run(Site(()), [*users(0, 4), *users(1, 4)], 2.0, 1.0)
    assert all(trip.verdicts for trip in record.trips)
    assert all(age_s >= 0.015 + 0.09 for age_s in record.ages_s), "one way, and a step"
    assert record.longest_queue <= record.largest_window


def test_without_root_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="network namespaces need root"), gateways(1, 0.0):
        pass
