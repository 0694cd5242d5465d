"""The text of an answer, token by token, up to the first of its stop strings.

Knows tokens and text, no model, no connection and no terminal.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from runtime.model.text_stream import Spelled, TextStream


class Piece(str):
    """A bit of the answer: a text that also knows whether the edge had `drafted` it."""

    __slots__ = ("drafted",)
    drafted: bool

    def __new__(cls, text: str, drafted: bool) -> "Piece":
        piece = super().__new__(cls, text)
        piece.drafted = drafted
        return piece


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
        self._held: list[tuple[str, bool]] = []  # characters that have not been shown

    def push(self, token: int, drafted: bool) -> list[Piece]:
        """What may be shown with this token; nothing once the text has ended."""
        return [] if self.ended else self._show(self._stream.push([token]), drafted)

    def finish(self) -> list[Piece]:
        """What is left when no more tokens come."""
        return [] if self.ended else self._show(self._stream.finish(), drafted=False, final=True)

    def _show(self, text: str, drafted: bool, final: bool = False) -> list[Piece]:
        self._held += [(character, drafted) for character in text]
        place, self.ended = self._first("".join(map(itemgetter(0), self._held)), final)
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
        runs = groupby(shown, key=itemgetter(1))
        return [Piece("".join(map(itemgetter(0), run)), drafted) for drafted, run in runs]
