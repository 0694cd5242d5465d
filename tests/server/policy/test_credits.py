"""Credits: never more out than places, one to a request, equal shares of users, none lost."""

import gc
import math
import random
import weakref
from collections import Counter
from collections.abc import Hashable

import pytest

from runtime.server.policy.credits import POLICIES, Credits, RoundRobin
from runtime.server.policy.window import Place, Window
from runtime.server.request import Request
from runtime.wire.messages import Open


def made(key: Hashable, user: Hashable = "") -> Request:
    """A request of which only its key and its user matter."""
    return Request(key, Open(1, 0, 0.0, 1.0, 0.0, 0, 1, 1, ()), 9, [0], user=user)


class Crowd:
    """A server that takes up to `batch` trees every `step_s`; a tree comes as its credit goes.

    The credits are for as many steps later as were counted on.
    """

    def __init__(self, credits: Credits, steps: int = 2, batch: int = 4, step_s: float = 0.1):
        self.credits, self.steps, self.batch, self.step_s = credits, steps, batch, step_s
        self.now_s, self.begun = 0.0, 0
        self.queue: list[Request] = []
        self.verified: Counter[Hashable] = Counter()

    def add(self, user: Hashable, requests: int) -> None:
        for number in range(requests):
            request = made((user, number), user)
            self.credits.opened(request)
            self.credits.want(request)

    def step(self) -> None:
        """Give, let the trees come at once, verify the oldest, and let those want again."""
        place = Place(self.begun + self.steps, self.steps, self.batch)
        self.queue += self.credits.give(self.now_s, lambda request: place)
        taken, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        for request in taken:
            self.credits.window.release(request)
            self.verified[request.user] += 1
        self.now_s, self.begun = self.now_s + self.step_s, self.begun + 1
        for request in taken:
            self.credits.want(request)


def test_a_window_gives_no_place_twice() -> None:
    near, far = Place(step=1, steps=1, batch=2), Place(step=2, steps=2, batch=2)
    window, (a, b, c, d, e) = Window(), map(made, "abcde")
    for request in (a, b):
        window.take(request, far)
    assert not window.has(far), "the second step is full, though the first is not"
    for request in (c, d):
        window.take(request, near)
    assert not window.has(near)
    assert window.size == 4
    assert not window.take(e, near)
    assert not e.has_credit
    window.release(c)
    window.check()
    with pytest.raises(AssertionError, match="has a credit already"):
        window.take(a, near)


def test_no_more_are_out_than_there_were_places_though_a_step_holds_more_than_before() -> None:
    window = Window()
    for step in (3, 2, 1):
        window.take(made(step), Place(step, steps=step, batch=1))
    assert window.size == len(window) == 3
    assert not window.has(Place(step=1, steps=1, batch=2))
    assert window.has(Place(step=1, steps=1, batch=4))


def test_who_is_late_takes_a_place_of_the_steps_to_come() -> None:
    window, (a, b) = Window(), map(made, "ab")
    for request in (a, b):
        window.take(request, Place(step=1, steps=1, batch=2))
    assert not window.has(Place(step=2, steps=1, batch=2)), "both are still to be verified"
    assert window.has(Place(step=3, steps=2, batch=2))
    window.release(a)
    assert window.has(Place(step=2, steps=1, batch=2))


@pytest.mark.parametrize("policy", POLICIES)
def test_random_events_keep_every_invariant(policy: str) -> None:
    for seed in range(15):
        rng = random.Random(seed)
        credits = POLICIES[policy]()
        live: dict[int, str] = {}  # what each request is doing
        requests: dict[int, Request] = {}
        until_s: dict[int, float] = {}  # of the credits that are out
        steps: dict[int, int] = {}  # the steps that they are for
        now_s, next_key, begun, batch, size = 0.0, 0, 0, rng.randint(1, 4), 0

        def place_of(request: Request) -> Place:
            behind = request.key % 3
            return Place(begun + 1 + behind, 1 + behind, batch)  # noqa: B023

        def has(place: Place) -> bool:
            """By looking at every credit; one that came back late is for no certain step."""
            until = [key for key in until_s if steps.get(key, 0) <= place.step]  # noqa: B023
            return policy == "open" or (
                list(steps.values()).count(place.step) < place.batch  # noqa: B023
                and len(until) < place.places
                and len(until_s) < max(size, place.places)  # noqa: B023
            )

        for _ in range(400):
            now_s += rng.choice([0.0, 0.001, 0.05, 0.4])
            action = rng.randint(0, 6)
            key = rng.choice(sorted(live)) if live else -1
            if action == 0 or not live:
                requests[next_key] = made(next_key, rng.choice("abc"))
                credits.opened(requests[next_key])
                live[next_key] = "resting"
                next_key += 1
            elif action == 1:
                credits.closed(requests[key])
                until_s.pop(key, None)
                steps.pop(key, None)
                del live[key]
            elif action == 2 and live[key] == "resting":
                credits.want(requests[key])
                live[key] = "wanting"
            elif action == 3 and live[key] == "credited":
                until_s[key] = math.inf  # its tree came, perhaps too late
                credits.window.hold(requests[key], math.inf)
                live[key] = "queued"
            elif action == 4 and live[key] == "queued":
                credits.window.release(requests[key])
                del until_s[key]
                steps.pop(key, None)
                live[key] = "resting"
            elif action == 5:
                begun, batch = begun + 1, rng.randint(1, 4)
            else:
                given = [request.key for request in credits.give(now_s, place_of)]
                until_s = {key: end_s for key, end_s in until_s.items() if end_s >= now_s}
                steps = {key: step for key, step in steps.items() if key in until_s}
                for key in given:
                    assert live[key] == "wanting", "a credit for a request that wants none"
                    place = place_of(requests[key])
                    assert has(place), "a credit without a place"
                    steps[key], size = place.step, max(size, place.places)
                    until_s[key] = now_s + rng.choice([0.05, 0.2])
                    credits.window.hold(requests[key], until_s[key])
                    live[key] = "credited"
                assert not given or len(credits.window) <= credits.window.size
                left = [key for key, what in live.items() if what == "wanting"]
                assert not left or not all(has(place_of(requests[key])) for key in left), (
                    "a place for anyone"
                )
            assert [key for key in live if requests[key].has_credit] == sorted(until_s)
            assert len(credits.window) == len(until_s)
            credits.window.check()
            assert credits.window.expires_s == min(until_s.values(), default=math.inf)
            assert credits.wanted == ("wanting" in live.values())
            assert credits.window.size == (math.inf if policy == "open" else size)


@pytest.mark.parametrize("policy", POLICIES)
def test_everybody_who_wants_is_served(policy: str) -> None:
    crowd = Crowd(POLICIES[policy]())
    for user in range(7):
        crowd.add(user, requests=1 + user)
    for _ in range(400):
        crowd.step()
    assert sorted(crowd.verified) == list(range(7))
    assert sum(crowd.verified.values()) == 400 * 4


def test_round_robin_shares_by_users_not_by_requests() -> None:
    crowd = Crowd(RoundRobin())
    crowd.add("a", 24)
    crowd.add("b", 8)
    for _ in range(200):
        crowd.step()
    assert crowd.verified["a"] / 800 == pytest.approx(0.5, abs=0.01)


def test_an_overdue_credit_goes_to_the_next_and_a_late_tree_does_no_harm() -> None:
    def only(request: Request) -> Place:
        return Place(step=1, steps=1, batch=1)

    credits = RoundRobin()
    for key in "ab":
        request = made(key, key)
        credits.opened(request)
        credits.want(request)
    (first,) = credits.give(0.0, only)
    credits.window.hold(first, 0.5)
    assert credits.give(0.4, only) == []
    assert credits.wake_s == 0.5
    (second,) = credits.give(0.6, only)
    assert {first.key, second.key} == {"a", "b"}
    credits.window.hold(first, float("inf"))  # the late tree comes after all
    assert len(credits.window) == 2
    credits.want(first)
    assert credits.give(0.7, only) == []
    credits.window.release(second)
    assert credits.give(0.7, only) == []
    credits.window.release(first)
    assert credits.give(0.7, only) == [first]
    assert credits.wake_s == float("inf")


def test_open_gives_to_all_in_the_order_of_asking() -> None:
    credits = Credits()
    requests = list(map(made, range(100)))
    for request in requests:
        credits.opened(request)
        credits.want(request)
    assert credits.give(0.0, lambda request: Place(1, 1, 1)) == requests


def test_who_is_next_is_not_passed() -> None:
    """A place further off that is left does not help the next one, nor those behind it."""
    places = {"near": Place(1, 1, 1), "next": Place(1, 1, 1), "far": Place(2, 2, 1)}
    credits = RoundRobin()
    requests = [made(key, key) for key in places]
    for request in requests:
        credits.opened(request)
        credits.want(request)

    def given() -> list[str]:
        return [request.key for request in credits.give(0.0, lambda r: places[r.key])]

    assert given() == ["near"]
    credits.window.release(requests[0])
    assert given() == ["next", "far"]


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_kept_of_a_user_who_has_gone(policy: str) -> None:
    """A server runs for weeks."""

    class Name:
        pass

    credits, user = POLICIES[policy](), Name()
    gone = weakref.ref(user)
    requests = [made(number, user) for number in range(3)]
    for request in requests:
        credits.opened(request)
        credits.want(request)
    assert requests[0] in credits.give(0.0, lambda request: Place(1, 1, 1))
    for request in requests:
        credits.closed(request)
    del user, request, requests
    gc.collect()
    assert gone() is None
    assert not credits.wanted
