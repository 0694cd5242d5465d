"""Whether an edge is still there, and how far away it is: what its answers to Pings tell.

A process that is stopped keeps its connection, as its system goes on confirming what comes; so does
one that hangs. Only what it says itself shows that it lives. An edge is asked while it has
requests, as one without holds nothing, and as it may not listen between them; not while it sends
trees, which tell the same: with thousands of edges there are seconds between two trees of one, and
to ask them all meanwhile, and to hear their answers, would cost more than the trees.

Knows no socket and no clock: it is asked every LOOK_S seconds and counts those times, so that a
server which was stopped itself takes nobody for silent.
"""

from collections import deque
from dataclasses import dataclass, field

LOOK_S = 2.0
TRIPS = 4  # so many are remembered
TREE_LOOKS = 5  # after a tree, for which another one is waited for without asking
SILENT_SHARE = 1 / 3  # of the silence at which an edge is given up, when it is asked in any case


@dataclass(slots=True)
class Pulse:
    """Of one edge."""

    silent_s: float = 0.0  # for how long nothing has come, as far as was looked
    # The shortest of the last round trips, None before the first. The others had to wait for
    # something: an edge that did not listen, a link that was full.
    rtt_s: float | None = None
    _heard_bytes: int = 0
    _has_drafted: bool = False  # since the last look
    _treeless_looks: int = TREE_LOOKS  # since one before which a tree had come
    _asked_s: float | None = None  # when the Ping went that has no answer yet
    _trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=TRIPS))

    def look(self, heard_bytes: int) -> None:
        """LOOK_S have passed; so many bytes have come in all."""
        self.silent_s = self.silent_s + LOOK_S if heard_bytes == self._heard_bytes else 0.0
        self._heard_bytes = heard_bytes
        self._treeless_looks = 0 if self._has_drafted else self._treeless_looks + 1
        self._has_drafted = False

    def drafted(self) -> None:
        """A tree has come: it tells that the edge is there, and how far away, as a Pong does."""
        self._has_drafted = True

    def is_to_be_asked(self, silence_s: float) -> bool:
        """Whether it sends no trees, or is silent for a part of what an edge may be."""
        return self._treeless_looks >= TREE_LOOKS or self.silent_s >= SILENT_SHARE * silence_s

    def may_ask(self) -> bool:
        """Whether no Ping is under way: there may be only one."""
        return self._asked_s is None

    def asked(self, now_s: float) -> None:
        """A Ping was sent."""
        self._asked_s = now_s

    def answered(self, now_s: float) -> float:
        """Its Pong has come; how long that took."""
        assert self._asked_s is not None, "a Pong without a Ping"
        trip_s, self._asked_s = now_s - self._asked_s, None
        self._trips_s.append(trip_s)
        self.rtt_s = min(self._trips_s)
        return trip_s
