"""JSON that comes character by character.

An object is checked as it grows, so that what is no JSON is known at its first wrong character and
not at its end. Knows nothing of what the object means.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto

SPACE = " \t\n\r"
HEX = "0123456789abcdefABCDEF"
ESCAPES = '"\\/bfnrtu'
MAX_DEPTH = 128
SCALAR_LETTERS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class Next(Enum):
    """What may come next."""

    OBJECT = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    FIRST_ITEM = auto()
    COMMA = auto()
    STRING = auto()  # more of one
    ESCAPE = auto()
    HEX = auto()
    SCALAR = auto()
    NOTHING = auto()


class JsonObject:
    """One object, of which each character is told which field's value it is part of."""

    def __init__(self) -> None:
        self._next = Next.OBJECT
        self._open: list[str] = []
        self._is_key = False
        self._digits = 0  # left of \uXXXX
        self._text = ""  # of a key of the object itself, or of a number or a word
        self._field: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it is whole."""
        return self._next is Next.NOTHING

    def push(self, character: str) -> str | None:
        """The field that a character belongs to the value of, None if it is between two.

        Raises ValueError where no object goes on so.
        """
        if self._next is Next.SCALAR:
            if character in SCALAR_LETTERS:
                self._text += character
                return self._field
            self._end_scalar()
        was_within = self._within
        self._take(character)
        return self._field if was_within or self._within else None

    @property
    def _within(self) -> bool:
        """Whether this is within a field's value, not beside it."""
        return len(self._open) > 1 or (
            self._next in (Next.STRING, Next.ESCAPE, Next.HEX, Next.SCALAR) and not self._is_key
        )

    def _take(self, character: str) -> None:
        match self._next:
            case Next.STRING:
                self._take_of_string(character)
            case Next.ESCAPE if character in ESCAPES:
                self._keep_key(character)
                self._next, self._digits = (Next.HEX, 4) if character == "u" else (Next.STRING, 0)
            case Next.HEX if character in HEX:
                self._keep_key(character)
                self._digits -= 1
                self._next = Next.HEX if self._digits else Next.STRING
            case Next.ESCAPE | Next.HEX:
                raise ValueError(f"{character!r} in an escape")
            case _ if character in SPACE:
                pass
            case _:
                self._take_of_structure(character)

    def _take_of_string(self, character: str) -> None:
        if character < " ":
            raise ValueError(f"{character!r} in a text")
        self._keep_key(character)
        if character == "\\":
            self._next = Next.ESCAPE
        elif character == '"':
            self._next = Next.COLON if self._is_key else Next.COMMA
            if self._is_key and len(self._open) == 1:
                self._field = json.loads(self._text)
            self._is_key = False

    def _keep_key(self, character: str) -> None:
        if self._is_key and len(self._open) == 1:
            self._text += character

    def _take_of_structure(self, character: str) -> None:
        match self._next, character:
            case (Next.OBJECT, "{") | ((Next.VALUE | Next.FIRST_ITEM), "{" | "["):
                self._open.append(character)
                self._next = Next.FIRST_KEY if character == "{" else Next.FIRST_ITEM
                if len(self._open) > MAX_DEPTH:
                    raise ValueError(f"more than {MAX_DEPTH} levels")
            case ((Next.FIRST_KEY | Next.KEY), '"'):
                self._next, self._is_key, self._text = Next.STRING, True, '"'
            case ((Next.VALUE | Next.FIRST_ITEM), '"'):
                self._next = Next.STRING
            case ((Next.VALUE | Next.FIRST_ITEM), _) if character in SCALAR_LETTERS:
                self._next, self._text = Next.SCALAR, character
            case Next.COLON, ":":
                self._next = Next.VALUE
            case Next.COMMA, ",":
                self._next = Next.KEY if self._open[-1] == "{" else Next.VALUE
            case ((Next.COMMA | Next.FIRST_KEY), "}") if self._open[-1] == "{":
                self._close()
            case ((Next.COMMA | Next.FIRST_ITEM), "]") if self._open[-1] == "[":
                self._close()
            case _:
                raise ValueError(f"{character!r} where no JSON goes on so")

    def _close(self) -> None:
        self._open.pop()
        self._next = Next.COMMA if self._open else Next.NOTHING

    def _end_scalar(self) -> None:
        if not SCALAR.fullmatch(self._text):
            raise ValueError(f"{self._text!r:.40} is no value")
        self._next = Next.COMMA
