"""The text of an answer, token by token, up to the first of its stop strings.

Knows tokens and text, no model, no connection and no terminal.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from runtime.model.text_stream import Spelled, TextStream


class Piece(str):
    """A bit of the answer: a text that also knows whether the edge had `drafted` it.

    It shows the answer's tokens from the `end` of the piece before up to its own `end`.
    """

    __slots__ = ("drafted", "end")
    drafted: bool
    end: int

    def __new__(cls, text: str, drafted: bool, end: int) -> "Piece":
        piece = super().__new__(cls, text)
        piece.drafted, piece.end = drafted, end
        return piece


class Character(NamedTuple):
    """One that has not been shown, and what its piece will say of it."""

    text: str
    drafted: bool
    end: int


class AnswerText:
    """Lets text through as soon as it cannot be the beginning of a stop string.

    The text ends where the leftmost stop string of the whole text begins, wherever tokens and
    pieces end; the stop string itself is never shown, nor is what comes after it.
    """

    def __init__(self, tokenizer: Spelled, stop: Sequence[str] = ()):
        """stop: strings of one character at least."""
        self.ended = False  # by a stop string
        self._stream = TextStream(tokenizer)
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._held: list[Character] = []
        self._read = 0  # tokens

    def push(self, token: int, drafted: bool) -> list[Piece]:
        """What may be shown with this token; nothing once the text has ended."""
        if self.ended:
            return []
        self._read += 1
        return self._show(self._stream.push([token]), drafted)

    def finish(self) -> list[Piece]:
        """What is left when no more tokens come."""
        return [] if self.ended else self._show(self._stream.finish(), drafted=False, final=True)

    def _show(self, text: str, drafted: bool, final: bool = False) -> list[Piece]:
        self._held += [Character(character, drafted, self._read) for character in text]
        place, self.ended = self._first("".join(one.text for one in self._held), final)
        return self._release(place)

    def _first(self, text: str, final: bool) -> tuple[int, bool]:
        """Where the first stop string begins, or may begin if more comes; whether it is whole."""
        for place in range(len(text) if self._stop else 0):
            if any(text.startswith(stop, place) for stop in self._stop):
                return place, True
            rest = text[place : place + self._longest]
            if not final and any(stop.startswith(rest) for stop in self._stop):
                return place, False
        return len(text), False

    def _release(self, count: int) -> list[Piece]:
        shown, self._held = self._held[:count], self._held[count:]
        runs = [list(run) for _, run in groupby(shown, key=attrgetter("drafted"))]
        return [Piece("".join(one.text for one in run), *run[-1][1:]) for run in runs]
