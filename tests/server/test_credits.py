"""Credits: never more out than the window, one to a session, shares by weight, none lost."""

import random
from collections import Counter
from collections.abc import Hashable

import pytest

from runtime.server.credits import POLICIES, Credits, ExpressPass, Pace, RoundRobin, Window

BOUNDED = [RoundRobin, ExpressPass]


class Crowd:
    """A server that takes up to `batch` trees every `step_s`; a tree comes as its credit goes."""

    def __init__(self, credits: Credits, window: int, batch: int = 4, step_s: float = 0.1):
        self.credits, self.batch, self.step_s = credits, batch, step_s
        self.now_s = 0.0
        self.queue: list[Hashable] = []
        self.verified: Counter[Hashable] = Counter()
        credits.resize(window, batch / step_s)

    def add(self, user: Hashable, sessions: int, weight: float = 1.0) -> None:
        for number in range(sessions):
            self.credits.opened((user, number), user, weight)
            self.credits.want((user, number))

    def step(self) -> None:
        """Give, let the trees come at once, verify the oldest, and let those want again."""
        self.queue += self.credits.give(self.now_s)
        taken, self.queue = self.queue[: self.batch], self.queue[self.batch :]
        for key in taken:
            self.credits.window.release(key)
            self.verified[key[0]] += 1  # type: ignore[index]
        self.now_s += self.step_s
        for key in taken:
            self.credits.want(key)


def test_a_window_never_gives_more_than_its_size() -> None:
    window = Window(2)
    window.take("a")
    window.take("b")
    assert not window.room
    with pytest.raises(AssertionError, match="2 credits are out"):
        window.take("c")
    window.release("a")
    with pytest.raises(AssertionError, match="has a credit already"):
        window.take("b")


@pytest.mark.parametrize("policy", POLICIES)
def test_random_events_keep_every_invariant(policy: str) -> None:
    for seed in range(15):
        rng = random.Random(seed)
        credits = POLICIES[policy]()
        credits.resize(rng.randint(1, 5), 50.0)
        live: dict[int, str] = {}  # what each session is doing
        until_s: dict[int, float] = {}  # of the credits that are out
        now_s, next_key = 0.0, 0
        for _ in range(400):
            now_s += rng.choice([0.0, 0.001, 0.05, 0.4])
            action = rng.randint(0, 6)
            key = rng.choice(sorted(live)) if live else -1
            if action == 0 or not live:
                credits.opened(next_key, rng.choice("abc"), rng.choice([0.5, 1.0, 3.0]))
                live[next_key] = "resting"
                next_key += 1
            elif action == 1:
                credits.closed(key)
                until_s.pop(key, None)
                del live[key]
            elif action == 2 and live[key] == "resting":
                credits.want(key)
                live[key] = "wanting"
            elif action == 3 and live[key] == "credited":
                until_s[key] = float("inf")  # its tree came, perhaps too late
                credits.window.hold(key, until_s[key])
                live[key] = "queued"
            elif action == 4 and live[key] == "queued":
                credits.window.release(key)
                del until_s[key]
                live[key] = "resting"
            elif action == 5:
                credits.resize(rng.randint(1, 5), 50.0)
            else:
                was = len(credits.window)
                given = credits.give(now_s)
                assert len(set(given)) == len(given)
                until_s = {key: end_s for key, end_s in until_s.items() if end_s >= now_s}
                for key in given:
                    assert live[key] == "wanting", "a credit for a session that wants none"
                    until_s[key] = now_s + rng.choice([0.05, 0.2])
                    credits.window.hold(key, until_s[key])
                    live[key] = "credited"
                assert not given or len(credits.window) <= credits.window.size
                assert given or "wanting" not in live.values() or was >= credits.window.size or (
                    len(credits.window) >= credits.window.size
                ), "room, and somebody who wants, and no credit given"  # fmt: skip
            assert [key for key in live if key in credits.window] == sorted(until_s)
            assert len(credits.window) == len(until_s)
            assert credits.window.expires_s == min(until_s.values(), default=float("inf"))
            assert credits.wanted == ("wanting" in live.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_everybody_who_wants_is_served(policy: str) -> None:
    crowd = Crowd(POLICIES[policy](), window=6)
    for user in range(7):
        crowd.add(user, sessions=1 + user)
    for _ in range(400):
        crowd.step()
    assert sorted(crowd.verified) == list(range(7))
    assert sum(crowd.verified.values()) == 400 * 4


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((3, 1), 0.75), ((0.5, 1.5), 0.25)])
def test_round_robin_shares_by_weight_not_by_sessions(
    weights: tuple[float, float], share: float
) -> None:
    crowd = Crowd(RoundRobin(), window=5)
    crowd.add("a", 24, weights[0])
    crowd.add("b", 8, weights[1])
    for _ in range(200):
        crowd.step()
    assert crowd.verified["a"] / 800 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("weights", "least", "most"), [((1.0, 1.0), 0.4, 0.6), ((3.0, 1.0), 0.55, 0.85)]
)
def test_express_pass_converges_towards_the_weights(
    weights: tuple[float, float], least: float, most: float
) -> None:
    crowd = Crowd(ExpressPass(), window=5)
    crowd.add("a", 24, weights[0])
    for _ in range(50):
        crowd.step()
    crowd.add("b", 24, weights[1])
    for _ in range(50):
        crowd.step()
    crowd.verified.clear()
    for _ in range(200):
        crowd.step()
    assert least <= crowd.verified["a"] / sum(crowd.verified.values()) <= most


def test_a_pace_rises_to_capacity_without_loss_and_falls_to_what_it_got_with_it() -> None:
    pace = Pace(offer_s=0.0, rate=10.0, weight=1.0)
    for _ in range(12):
        pace.update(least=1.0, most=100.0, period_s=0.5)
    assert pace.rate == pytest.approx(100.0, rel=0.01)
    pace.granted, pace.lost = 20, 30
    pace.update(least=1.0, most=100.0, period_s=0.5)
    assert pace.rate == pytest.approx(40.0, rel=0.01)
    pace.lost = 30
    pace.update(least=1.0, most=100.0, period_s=0.5)
    assert pace.rate == 1.0


@pytest.mark.parametrize("kind", BOUNDED)
def test_an_overdue_credit_goes_to_the_next_and_a_late_tree_does_no_harm(
    kind: type[Credits],
) -> None:
    credits = kind()
    credits.resize(1, 10.0)
    for key in "ab":
        credits.opened(key, key)
        credits.want(key)
    (first,) = credits.give(0.0)
    credits.window.hold(first, 0.5)
    assert credits.give(0.4) == []
    assert credits.wake_s == 0.5
    (second,) = credits.give(0.6)
    assert {first, second} == {"a", "b"}
    credits.window.hold(first, float("inf"))  # the late tree comes after all
    assert len(credits.window) == 2
    credits.want(first)
    assert credits.give(0.7) == []
    credits.window.release(second)
    assert credits.give(0.7) == []
    credits.window.release(first)
    assert credits.give(0.7) == [first]
    assert credits.wake_s == float("inf")


def test_open_gives_to_all_in_the_order_of_asking() -> None:
    credits = Credits()
    for key in range(100):
        credits.opened(key, "")
        credits.want(key)
    assert credits.give(0.0) == list(range(100))


def test_a_weight_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        RoundRobin().opened("a", "user", 0.0)
