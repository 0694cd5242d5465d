"""Credits: who may send a tree. A credit is a place in a certain verification step.

A session gets one while the first step that its tree can be in has a place left, and the steps up
to that one have as well. So trees on the way or in the queue never outnumber the places before
them: nothing is dropped and a thousand edges cannot flood the server. Three policies say who is
next, and who is next waits for its place rather than let others pass.
Knows nothing of rows, trees or clocks; the time is an argument.
Source: ExpressPass (arXiv:1610.04688), adapted: credits are offered only to sessions that want one,
at most one to each, for places that come free when a batch is taken, with weights by user; see
also deficit round-robin (Shreedhar and Varghese, SIGCOMM 1995).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

TARGET_LOSS, LEAST_GAIN, MOST_GAIN, GAIN_STEP = 0.125, 0.01, 0.5, 0.05  # of the paper
LEAST_SHARE = 1 / 8  # of an equal share, which nobody's rate falls below
PERIOD_S, OFFERS = 0.25, 4  # at least so long, and so many offers to a user
HOLD_S = 0.12  # a credit is taken back when the tree is so much later than it was expected


@dataclass(frozen=True)
class Place:
    """In the first step that a tree can be in: steps have numbers, and `batch` places each.

    `steps` of them begin from now until that one has begun, itself included.
    """

    step: int
    steps: int
    batch: int

    @property
    def places(self) -> int:
        """Of all these steps."""
        return self.steps * self.batch


@dataclass
class Window:
    """Credits that are out, each for a step and until a time: at most `size` after any `take`.

    With an infinite `size` there are places for all. A tree that comes after its credit was
    taken back takes a place again, and may overfill the next step; then none is given for it.
    """

    size: float = 0  # the most places that there were until any tree's step
    given: int = 0  # credits, since the start
    expired: int = 0  # of these, taken back because the tree did not come
    _until_s: dict[Hashable, float] = field(default_factory=dict)
    _step: dict[Hashable, int] = field(default_factory=dict)  # none of a tree that came too late
    _none_before_s: float = math.inf  # until then no credit is overdue

    def __len__(self) -> int:
        return len(self._until_s)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._until_s

    def has(self, place: Place) -> bool:
        """Whether one more credit may go out for this place."""
        if math.isinf(self.size):
            return True
        here = sum(step == place.step for step in self._step.values())
        later = sum(step > place.step for step in self._step.values())
        return (
            here < place.batch
            and len(self) - later < place.places
            and len(self) < max(self.size, place.places)
        )

    def take(self, key: Hashable, place: Place) -> None:
        """Give a credit, for as long as `hold` then says."""
        assert self.has(place), f"step {place.step} has no place: {len(self)} credits are out"
        assert key not in self, f"{key} has a credit already"
        self._until_s[key], self._step[key] = math.inf, place.step
        self.size = max(self.size, place.places)
        self.given += 1

    def hold(self, key: Hashable, until_s: float) -> None:
        """A credit that is out lasts until then; one that is not out comes back."""
        self._until_s[key] = until_s
        self._none_before_s = min(self._none_before_s, until_s)

    def release(self, key: Hashable) -> None:
        """The tree was taken into a batch, or its session is gone."""
        self._until_s.pop(key, None)
        self._step.pop(key, None)

    @property
    def expires_s(self) -> float:
        """When the next credit is overdue; infinite if none can be."""
        return min(self._until_s.values(), default=math.inf)

    def expire(self, now_s: float) -> None:
        """Take back credits that are overdue."""
        if now_s <= self._none_before_s:
            return
        for key in [key for key, until_s in self._until_s.items() if until_s < now_s]:
            self.release(key)
            self.expired += 1
        self._none_before_s = self.expires_s


@dataclass
class User:
    """Sessions of one user that want a credit, in the order of asking."""

    weight: float = 1.0
    sessions: int = 0
    wanting: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)


class Credits:
    """The policy `open`: whoever asks is given, in the order of asking. Base of the others."""

    def __init__(self) -> None:
        self.window = Window(math.inf)
        self._users: dict[Hashable, User] = {}
        self._wanting: dict[Hashable, User] = {}  # of these, who want a credit
        self._user_of: dict[Hashable, Hashable] = {}

    def opened(self, key: Hashable, user: Hashable, weight: float = 1.0) -> None:
        """A session of `user` comes; the user's share of a full server is by weight."""
        if weight <= 0:
            raise ValueError(f"the weight of user {user!r} is {weight}; it must be above 0")
        entry = self._users.setdefault(user, User())
        entry.weight, entry.sessions = weight, entry.sessions + 1
        self._user_of[key] = user

    def closed(self, key: Hashable) -> None:
        """Forget a session, and the user with the last one."""
        user = self._user_of.pop(key)
        entry = self._users[user]
        entry.wanting.pop(key, None)
        if not entry.wanting:
            self._wanting.pop(user, None)
        entry.sessions -= 1
        if not entry.sessions:
            del self._users[user]
        self.window.release(key)

    def want(self, key: Hashable) -> None:
        """The session has, or is making, a tree to send."""
        user = self._user_of[key]
        self._wanting[user] = self._users[user]
        self._wanting[user].wanting[key] = None

    def verified(self, trees_per_s: float) -> None:
        """So many trees have been verified a second."""

    def give(self, now_s: float, place_of: Callable[[Hashable], Place]) -> list[Hashable]:
        """Sessions that get a credit now, for their places; `Window.hold` then says how long."""
        self.window.expire(now_s)
        given: list[Hashable] = []
        while (user := self._next(now_s)) is not None:
            sessions = self._wanting[user].wanting
            key = next(iter(sessions))
            place = place_of(key)
            if not self.window.has(place):
                break
            self._charge(user, now_s)
            del sessions[key]
            if not sessions:
                del self._wanting[user]
            self.window.take(key, place)
            given.append(key)
        return given

    def _charge(self, user: Hashable, now_s: float) -> None:
        """The user whose turn it was gets a credit."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a credit."""
        return bool(self._wanting)

    @property
    def wake_s(self) -> float:
        """When `give` may have more to give although no tree was taken; infinite if never."""
        return self.window.expires_s if self.wanted else math.inf

    def _next(self, now_s: float) -> Hashable | None:
        """The user whose turn it is, None when nobody wants a credit."""
        return next(iter(self._wanting), None)


class RoundRobin(Credits):
    """`drr`: users in turn, as many trees each as their weight; exact for one process.

    A tree is the unit, so the deficit is counted in trees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self._deficit: OrderedDict[Hashable, float] = OrderedDict()  # of users in the ring

    def want(self, key: Hashable) -> None:
        super().want(key)
        user = self._user_of[key]
        self._deficit.setdefault(user, self._users[user].weight)

    def _charge(self, user: Hashable, now_s: float) -> None:
        self._deficit[user] -= 1

    def _next(self, now_s: float) -> Hashable | None:
        while self._deficit:
            user, deficit = next(iter(self._deficit.items()))
            entry = self._wanting.get(user)
            if entry is None:
                del self._deficit[user]  # who wants nothing saves nothing up
            elif deficit >= 1:
                return user
            else:
                self._deficit[user] += entry.weight
                self._deficit.move_to_end(user)
        return None


@dataclass
class Pace:
    """What one user is offered, and what became of the offers of this period.

    `rate` is in offers per second and unit of weight; the last one fell due at `offer_s`.
    """

    offer_s: float
    rate: float
    weight: float
    gain: float = 0.5
    may_increase: bool = False
    granted: int = 0
    lost: int = 0

    @property
    def due_s(self) -> float:
        """When the next offer falls due."""
        return self.offer_s + 1 / (self.rate * self.weight)

    def grant(self, since_s: float, now_s: float) -> None:
        """The offer is taken up; one from before `since_s` counts as from then.

        One ahead of its time, since nobody else wanted it, is not held against the user.
        """
        self.offer_s = min(max(self.due_s, since_s), now_s)
        self.granted += 1

    def lose(self, now_s: float) -> None:
        """The offers that were due so long that a batch has passed them over are lost."""
        rate = self.rate * self.weight
        self.lost = max(math.ceil((now_s - HOLD_S - self.due_s) * rate), 0)
        self.offer_s += self.lost / rate

    def update(self, least: float, most: float, period_s: float) -> None:
        """The feedback of ExpressPass (section 3.2), towards a small loss; `most` is capacity."""
        target = (1 - min(self.rate / most, 1)) * TARGET_LOSS
        if self.lost > target * (self.lost + self.granted):
            self.rate = min(self.rate, self.granted / period_s / self.weight * (1 + target))
            self.gain, self.may_increase = max(self.gain / 2, LEAST_GAIN), False
        else:
            if self.may_increase:
                self.gain = min(self.gain + GAIN_STEP, MOST_GAIN)
            self.may_increase = True
            self.rate += self.gain * (most - self.rate)
        self.rate = max(self.rate, least)
        self.granted = self.lost = 0


class ExpressPass(Credits):
    """`xpass`: every user is offered credits at a rate that follows the loss of offers.

    An offer that falls due and finds no place is lost; the user whose offer has been due longest
    is next, of equals who asked first, and starts with an equal share. All users share one update
    period. Right where several gateways share one accelerator and none sees all users.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self._paces: dict[Hashable, Pace] = {}
        self._most = 1.0
        self._updated_s = math.inf  # until the first call

    def closed(self, key: Hashable) -> None:
        user = self._user_of[key]
        super().closed(key)
        if user not in self._users:
            self._paces.pop(user, None)

    def verified(self, trees_per_s: float) -> None:
        self._most = max(trees_per_s, 1.0)

    def give(self, now_s: float, place_of: Callable[[Hashable], Place]) -> list[Hashable]:
        given = super().give(now_s, place_of)
        self._updated_s = min(self._updated_s, now_s)
        if now_s >= self._updated_s + self._period_s:
            self._update(now_s)
        return given

    @property
    def _period_s(self) -> float:
        """Long enough for some offers to every user."""
        return max(PERIOD_S, OFFERS * len(self._users) / self._most)

    def _next(self, now_s: float) -> Hashable | None:
        for user in self._wanting:
            if user not in self._paces:
                fair = self._most / len(self._users)
                self._paces[user] = Pace(now_s, fair, self._users[user].weight)
        return min(self._wanting, key=lambda user: self._paces[user].due_s, default=None)

    def _charge(self, user: Hashable, now_s: float) -> None:
        self._paces[user].grant(now_s - self._period_s, now_s)

    def _update(self, now_s: float) -> None:
        """Count the offers that were lost, and let every rate follow."""
        period_s, self._updated_s = now_s - self._updated_s, now_s
        for user, pace in self._paces.items():
            if user in self._wanting:
                pace.lose(now_s)
            pace.update(LEAST_SHARE * self._most / len(self._users), self._most, period_s)


POLICIES: dict[str, type[Credits]] = {"open": Credits, "drr": RoundRobin, "xpass": ExpressPass}
