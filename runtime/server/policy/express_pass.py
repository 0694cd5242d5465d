"""Credits at rates that follow their loss: for several gateways that share one accelerator.

Every user is *offered* credits at a rate of its own. An offer that falls due and finds a place is a
credit; one that finds none within `HOLD_S` is lost. From the share that was lost, each user's rate
is set anew every period: down to what it got if more was lost than a small target, else up towards
capacity. An example: the accelerator verifies 100 trees a second, and A alone is offered 100. B
comes and is offered 50, an equal share. Of 150 offers 50 find no place, say 33 of A's and 17 of
B's: A got 67 and is offered 67 from now on, B got 33 and is offered 35. Then little is lost and
both rise, B faster, as it is further below 100. So they meet although neither was counted against
the other: right where several gateways share one accelerator and none sees all users.

Source: ExpressPass (arXiv:1610.04688), section 3.2; adapted as in `credits.py`.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from runtime.server.policy.credits import Credits, RoundRobin
from runtime.server.policy.window import HOLD_S, Place
from runtime.server.request import Request

TARGET_LOSS, LEAST_GAIN, MOST_GAIN, GAIN_STEP = 0.125, 0.01, 0.5, 0.05  # of the paper
LEAST_SHARE = 1 / 8  # of an equal share, which nobody's rate falls below
PERIOD_S, OFFERS = 0.25, 4  # at least so long, and so many offers to a user


@dataclass
class OfferRate:
    """What one user is offered, and what became of the offers of this period.

    `rate` is in offers per second; the last one fell due at `offer_s`.
    """

    offer_s: float
    rate: float
    gain: float = 0.5
    may_increase: bool = False
    granted: int = 0
    lost: int = 0

    @property
    def due_s(self) -> float:
        """When the next offer falls due."""
        return self.offer_s + 1 / self.rate

    def grant(self, since_s: float, now_s: float) -> None:
        """The offer is taken up; one from before `since_s` counts as from then.

        One ahead of its time, since nobody else wanted it, is not held against the user.
        """
        self.offer_s = min(max(self.due_s, since_s), now_s)
        self.granted += 1

    def lose(self, now_s: float) -> None:
        """The offers that were due so long that a batch has passed them over are lost."""
        self.lost = max(math.ceil((now_s - HOLD_S - self.due_s) * self.rate), 0)
        self.offer_s += self.lost / self.rate

    def update(self, least: float, most: float, period_s: float) -> None:
        """The feedback, towards a small loss; `most` is capacity."""
        target = (1 - min(self.rate / most, 1)) * TARGET_LOSS
        if self.lost > target * (self.lost + self.granted):
            self.rate = min(self.rate, self.granted / period_s * (1 + target))
            self.gain, self.may_increase = max(self.gain / 2, LEAST_GAIN), False
        else:
            if self.may_increase:
                self.gain = min(self.gain + GAIN_STEP, MOST_GAIN)
            self.may_increase = True
            self.rate += self.gain * (most - self.rate)
        self.rate = max(self.rate, least)
        self.granted = self.lost = 0


class ExpressPass(Credits):
    """`xpass`: the user whose offer has been due longest is next, of equals who asked first.

    A new user starts with an equal share. All users share one update period.
    """

    def __init__(self) -> None:
        super().__init__(size=0)
        self._rates: dict[Hashable, OfferRate] = {}
        self._most = 1.0
        self._updated_s = math.inf  # until the first call

    def closed(self, request: Request) -> None:
        super().closed(request)
        if request.user not in self._users:
            self._rates.pop(request.user, None)

    def verified(self, trees_per_s: float) -> None:
        self._most = max(trees_per_s, 1.0)

    def give(self, now_s: float, place_of: Callable[[Request], Place]) -> list[Request]:
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
            if user not in self._rates:
                self._rates[user] = OfferRate(now_s, self._most / len(self._users))
        return min(self._wanting, key=lambda user: self._rates[user].due_s, default=None)

    def _serve(self, user: Hashable, now_s: float) -> None:
        self._rates[user].grant(now_s - self._period_s, now_s)

    def _update(self, now_s: float) -> None:
        """Count the offers that were lost, and let every rate follow."""
        period_s, self._updated_s = now_s - self._updated_s, now_s
        for user, offered in self._rates.items():
            if user in self._wanting:
                offered.lose(now_s)
            offered.update(LEAST_SHARE * self._most / len(self._users), self._most, period_s)


POLICIES: dict[str, type[Credits]] = {"open": Credits, "drr": RoundRobin, "xpass": ExpressPass}
