"""Moments of an answer, found in the frames that pass or told by the edge.

Knows frames and whole messages; what is done at a moment is the business of `proxy.py`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from runtime.wire import messages as wire
from runtime.wire.frames import HEADER, decode_body, decode_header


class Moment(Enum):
    """When a fault strikes."""

    HANDSHAKE = auto()  # the Welcome is on its way
    PROMPT = auto()  # half of the prompt has arrived
    FIRST_VERDICT = auto()  # on its way
    TREE = auto()  # half of a tree has arrived
    VERDICT = auto()  # one in the middle of the text is on its way
    CREDIT = auto()  # the edge waits for it
    LAST_TOKEN = auto()  # its verdict is on its way
    HIT = auto()  # the edge has just learnt that it foresaw the bonus
    MISS = auto()  # or that it did not
    BETWEEN = auto()  # an answer has ended, the next one has not begun


@dataclass(frozen=True)
class Sight:
    """The `nth` message of a kind that fulfils a condition, in one direction."""

    up: bool
    kind: type[wire.Message]
    nth: int = 1
    halfway: bool = False  # in the middle of the frame rather than before it
    holds: Callable[[wire.Message], bool] = lambda message: True


SIGHTS = {
    Moment.HANDSHAKE: Sight(False, wire.Welcome),
    Moment.PROMPT: Sight(True, wire.Prompt, halfway=True),
    Moment.FIRST_VERDICT: Sight(False, wire.Verdict),
    Moment.TREE: Sight(True, wire.Draft, nth=3, halfway=True),
    Moment.VERDICT: Sight(False, wire.Verdict, nth=4),
    Moment.CREDIT: Sight(False, wire.Credit),
    Moment.LAST_TOKEN: Sight(False, wire.Verdict, holds=lambda verdict: bool(verdict.finish)),
}


@dataclass
class Watch:
    """Cuts both streams of one connection into frames until the one of the moment has come."""

    sight: Sight
    vocabulary_size: int
    _rest: dict[bool, bytes] = field(default_factory=lambda: {True: b"", False: b""})
    _seen: Counter[type[wire.Message]] = field(default_factory=Counter)

    def feed(self, up: bool, data: bytes) -> tuple[bytes, int | None]:
        """The whole frames that there are now, and where in them the sought one begins.

        With it comes everything that has arrived after it.
        """
        data, place = self._rest[up] + data, 0
        while (frame := self._frame(data[place:])) is not None:
            if up is self.sight.up and self._is_it(frame):
                return data, place
            place += len(frame)
        self._rest[up] = data[place:]
        return data[:place], None

    def take_rest(self, up: bool) -> bytes:
        """What was held back of a frame that is not whole."""
        rest, self._rest[up] = self._rest[up], b""
        return rest

    @staticmethod
    def _frame(data: bytes) -> bytes | None:
        if len(data) < HEADER.size:
            return None
        length = decode_header(data).length
        return data[:length] if len(data) >= length else None

    def _is_it(self, frame: bytes) -> bool:
        message = decode_body(decode_header(frame), frame[HEADER.size :], self.vocabulary_size)
        if not isinstance(message, self.sight.kind) or not self.sight.holds(message):
            return False
        self._seen[self.sight.kind] += 1
        return self._seen[self.sight.kind] == self.sight.nth
