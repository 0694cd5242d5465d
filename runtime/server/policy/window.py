"""Which places in the steps to come have been given away: the credits that are out.

A credit is permission to send one tree, and stands for one place in one step. Say a step holds four
trees, step 7 is running, and a tree that is drafted now can be in step 9 at the soonest. Steps 8
and 9 have eight places, the tree's own among them. It may be sent if fewer than four credits are
out for step 9, and fewer than eight for steps 8 and 9 together (a tree that is late for step 8 will
want a place in step 9). So trees on the way or in the queue never outnumber the places that wait
for them, and none is ever dropped.

Knows nothing of users and clocks; the time is an argument.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.server.request import Credit, Request

HOLD_S = 0.12  # a credit is taken back when the tree is so much later than it was expected


class Place(NamedTuple):
    """A place in step number `step`, the first that a tree can be in; each step has `batch` places.

    `steps` steps begin from now on until that one has begun, itself included: in the example above
    Place(step=9, steps=2, batch=4).
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

    size: float = 0  # the most places (`Place.places`) that any tree found before its step
    given: int = 0  # credits, since the start
    expired: int = 0  # of these, taken back because the tree did not come
    _out: set[Credit] = field(default_factory=set)
    _of_step: Counter[int] = field(default_factory=Counter)  # credits out for each step
    none_before_s: float = math.inf  # until then no credit is overdue

    def __len__(self) -> int:
        return len(self._out)

    def has(self, place: Place) -> bool:
        """Whether one more credit may go out for this place."""
        if math.isinf(self.size):
            return True
        step, steps, batch = place
        out, of_step, places = len(self._out), self._of_step, steps * batch
        if of_step[step] >= batch or (out >= places and out >= self.size):
            return False
        return out - sum([of_step[later] for later in of_step if later > step]) < places

    def take(self, request: Request, place: Place) -> bool:
        """Give a credit, for as long as `hold` then says; False where there is no place for it."""
        if not self.has(place):
            return False
        assert not request.has_credit, f"{request.key} has a credit already"
        self._give(request, Credit(place.step, math.inf))
        self._of_step[place.step] += 1
        if (places := place.places) > self.size:
            self.size = places
        self.given += 1
        return True

    def hold(self, request: Request, until_s: float) -> None:
        """A credit that is out lasts until then; one that is not out comes back."""
        if request.credit is not None and request.credit.is_out:
            request.credit.until_s = until_s
        else:
            self._give(request, Credit(None, until_s))
        self.none_before_s = min(self.none_before_s, until_s)

    def release(self, request: Request) -> None:
        """The tree was taken into a batch, or the request has ended; it may have no credit."""
        if request.credit is not None and request.credit.is_out:
            self._take_back(request.credit)

    @property
    def expires_s(self) -> float:
        """When the next credit is overdue; infinite if none can be."""
        return min((credit.until_s for credit in self._out), default=math.inf)

    def expire(self, now_s: float) -> None:
        """Take back credits that are overdue."""
        if now_s < self.none_before_s:
            return
        overdue = [credit for credit in self._out if credit.until_s < now_s]
        for credit in overdue:
            self._take_back(credit)
        self.expired += len(overdue)
        self.none_before_s = self.expires_s

    def check(self) -> None:
        """Recount the credits by step."""
        assert all(credit.is_out for credit in self._out), "a credit that came back is out"
        steps = Counter(c.step for c in self._out if c.step is not None)
        # as dicts: a Counter equals one that has zeros besides, and these would pile up
        of_step = dict(self._of_step)
        assert dict(steps) == of_step, f"credits of steps {of_step}, counted {steps}"

    def _give(self, request: Request, credit: Credit) -> None:
        request.credit = credit
        self._out.add(credit)

    def _take_back(self, credit: Credit) -> None:
        credit.is_out = False
        self._out.remove(credit)
        if credit.step is not None:
            self._of_step[credit.step] -= 1
            if not self._of_step[credit.step]:
                del self._of_step[credit.step]
