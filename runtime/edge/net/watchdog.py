"""When a silent server is asked for a sign of life, and when its link is given up.

A server with much to do lets a verdict wait but answers a Ping at once, so it is told apart from a
dead one without knowing how long its queue is. Knows no clock and no socket: it is asked every
`patience_s` seconds.
"""

from dataclasses import dataclass
from enum import Enum

FIRST_PATIENCE_S, LEAST_PATIENCE_S = 5.0, 1.0
PATIENCE_ROUNDS = 4


class Sign(Enum):
    """What to do about the link."""

    FINE = "nothing"
    ASK = "send a Ping"
    DEAD = "give it up"


@dataclass
class Watchdog:
    """Silent for `patience_s` while requests wait: ask. Silent for as long again: dead."""

    patience_s: float = FIRST_PATIENCE_S
    _round_s: float = 0.0
    _heard_bytes: int = 0
    _asked: bool = False

    def saw_round(self, round_s: float, verify_s: float) -> None:
        """A verdict came `round_s` after it was due, and its verification took `verify_s`."""
        self._round_s += (round_s - self._round_s) / 4 if self._round_s else round_s
        self.patience_s = max(PATIENCE_ROUNDS * self._round_s, LEAST_PATIENCE_S + verify_s)

    def saw_pong(self) -> None:
        """The Ping was answered."""
        self._asked = False

    def look(self, heard_bytes: int, waiting: bool) -> Sign:
        """Judge by the bytes received in all, and by whether anybody waits for more."""
        silent, self._heard_bytes = heard_bytes == self._heard_bytes, heard_bytes
        if not silent or not waiting:
            return Sign.FINE
        if self._asked:
            return Sign.DEAD
        self._asked = True
        return Sign.ASK
