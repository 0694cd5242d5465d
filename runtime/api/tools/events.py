"""What the text of an answer turns out to be, bit by bit."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field

from runtime.api.tools.conversation import ID_LETTERS

LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Content:
    """Some of what is said to the user. end: where in the answer it ends, in characters."""

    text: str
    end: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Thought:
    """Some of what the model thinks before that."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call of a function, of which the arguments follow. index: 0 for the answer's first."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """Some of the JSON of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """The arguments are whole."""

    index: int


@dataclass(frozen=True)
class CallBroken:
    """What was begun is no call after all, but this text. end: as Content's."""

    index: int
    text: str
    end: int = field(default=0, compare=False)


Event = Content | Thought | CallBegun | Arguments | CallEnded | CallBroken


def new_id() -> str:
    """An id for a call, in a form that every chat template takes."""
    return "".join(secrets.choice(LETTERS) for _ in range(ID_LETTERS))
