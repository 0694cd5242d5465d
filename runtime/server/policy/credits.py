"""Credits: which of those who have a tree to send may send it next.

Every request has at most one credit, and asks for one whenever its edge has the turn. While the
window has a place for whoever is next, that request gets it; if there is none, everybody waits: who
is next is not passed by others whose tree would find a place. So a far edge, whose tree comes in a
later step, is served as often as a near one. The policies differ in who is next:

    open   whoever asks, in the order of asking; there is always a place
    drr    users in turn, one tree each, whether a user has one request or fifty

An example of `drr` with two places: user A asks for a1, a2 and a3, then user B for b1. A is first,
so a1 gets a credit and A goes behind B; then b1 does. Both places are given. When a step takes a1
and its credit comes back, A is next with a2.

Knows nothing of rows, trees or clocks; the time is an argument.
Source: ExpressPass (arXiv:1610.04688), adapted: credits are offered only to requests that want one,
at most one to each, for places that come free when a batch is taken; round robin over users with
equal trees is deficit round-robin (Shreedhar and Varghese, SIGCOMM 1995) with a quantum of one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from runtime.server.policy.window import Place, Window
from runtime.server.request import Request


@dataclass
class User:
    """One user's requests: how many there are, and in the order of asking those that want."""

    requests: int = 0
    # not a dict: to find its first one takes the longer, the more have left from its front
    wanting: OrderedDict[Request, None] = field(default_factory=OrderedDict)


class Credits:
    """The policy `open`, and the base of any other."""

    def __init__(self, size: float = math.inf) -> None:
        self.window = Window(size)
        self._users: dict[Hashable, User] = {}
        self._wanting: OrderedDict[Hashable, User] = OrderedDict()  # of these, who want a credit

    def opened(self, request: Request) -> None:
        """A request of its user comes."""
        self._users.setdefault(request.user, User()).requests += 1

    def closed(self, request: Request) -> None:
        """Forget a request, and the user with the last one."""
        user = self._users[request.user]
        user.wanting.pop(request, None)
        if not user.wanting:
            self._wanting.pop(request.user, None)
        user.requests -= 1
        if not user.requests:
            del self._users[request.user]
        self.window.release(request)

    def want(self, request: Request) -> None:
        """The request's edge has, or is making, a tree to send."""
        user = self._wanting[request.user] = self._users[request.user]
        user.wanting[request] = None

    def give(self, now_s: float, place_of: Callable[[Request], Place]) -> list[Request]:
        """Requests that get a credit now, for their places; `Window.hold` then says how long."""
        self.window.expire(now_s)
        given: list[Request] = []
        while (name := self._next(now_s)) is not None:
            wanting = self._wanting[name].wanting
            request = next(iter(wanting))
            if not self.window.take(request, place_of(request)):
                break
            self._serve(name, now_s)
            del wanting[request]
            if not wanting:
                del self._wanting[name]
            given.append(request)
        return given

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a credit."""
        return bool(self._wanting)

    @property
    def wake_s(self) -> float:
        """When `give` may have more to give although no tree was taken, at the soonest; infinite if
        never."""
        return self.window.none_before_s if self.wanted else math.inf

    def _next(self, now_s: float) -> Hashable | None:
        """The user whose turn it is, None when nobody wants a credit."""
        return next(iter(self._wanting), None)

    def _serve(self, user: Hashable, now_s: float) -> None:
        """The user whose turn it was gets a credit."""


class RoundRobin(Credits):
    """`drr`: users in turn, a tree each."""

    def __init__(self) -> None:
        super().__init__(size=0)

    def _serve(self, user: Hashable, now_s: float) -> None:
        self._wanting.move_to_end(user)  # behind all others


POLICIES: dict[str, type[Credits]] = {"open": Credits, "drr": RoundRobin}
