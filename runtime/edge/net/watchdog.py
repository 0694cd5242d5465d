"""When a silent server is asked for a sign of life, and when its link is given up.

A server with much to do lets a verdict wait but answers a Ping at once, so it is told apart from a
dead one without knowing how long its queue is. On a slow link the Ping waits behind the prompt that
is still on its way: what the other machine takes of it is a sign of life, and where something
between takes it, it is given the time of a link of 500 bytes a second. Knows no clock and no
socket: it is asked every `patience_s` seconds.
"""

from dataclasses import dataclass
from enum import Enum

FIRST_PATIENCE_S, LEAST_PATIENCE_S = 5.0, 1.0
PATIENCE_ROUNDS = 4
SLOWEST_BYTES_PER_S = 500.0


class Sign(Enum):
    """What to do about the link."""

    FINE = "nothing"
    ASK = "send a Ping"
    DEAD = "give it up"


@dataclass
class Watchdog:
    """Silent for `patience_s` while requests wait: ask. Silent for as long again: dead.

    Longer by what the slowest link takes for that which the server may not have received yet.
    """

    patience_s: float = FIRST_PATIENCE_S
    _round_s: float = 0.0
    _heard_bytes: int = 0
    _asked: bool = False
    _asked_at_bytes: int = 0  # sent before the Ping
    _arrived_bytes: int = 0  # sent, and certainly received
    _silent_s: float = 0.0

    def saw_round(self, round_s: float, verify_s: float) -> None:
        """A verdict came `round_s` after it was due, and its verification took `verify_s`."""
        self._round_s += (round_s - self._round_s) / 4 if self._round_s else round_s
        self.patience_s = max(PATIENCE_ROUNDS * self._round_s, LEAST_PATIENCE_S + verify_s)

    def saw_arrival(self, sent_bytes: int) -> None:
        """The server has answered what was behind so many bytes."""
        self._arrived_bytes = max(self._arrived_bytes, sent_bytes)

    def saw_pong(self) -> None:
        """The Ping was answered."""
        self._asked = False
        self.saw_arrival(self._asked_at_bytes)

    def look(self, heard_bytes: int, sent_bytes: int, waiting: bool) -> Sign:
        """Judge by the bytes sent, and whether anybody waits for more than was heard.

        heard_bytes are those received, and those sent that the other machine has taken.
        """
        silent, self._heard_bytes = heard_bytes == self._heard_bytes, heard_bytes
        self._silent_s = self._silent_s + self.patience_s if silent and waiting else 0.0
        if not silent or not waiting:
            return Sign.FINE
        if not self._asked:
            self._asked, self._asked_at_bytes = True, sent_bytes
            self._silent_s = 0.0
            return Sign.ASK
        upload_s = (sent_bytes - self._arrived_bytes) / SLOWEST_BYTES_PER_S
        return Sign.DEAD if self._silent_s >= upload_s else Sign.FINE
