"""What the doctor finds: a sentence for a person, figures for a program, and how to mend it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # it works, but costs speed or comfort
    FAULT = "fault"  # it does not work


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do about it, where anything is wrong."""

    topic: str
    sentence: str
    state: State = State.OK
    mend: str = ""
    figures: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.mend) == (self.state is not State.OK), f"what mends {self.sentence!r}?"

    def to_json(self) -> dict[str, object]:
        told = {"topic": self.topic, "state": self.state.value, "sentence": self.sentence}
        return told | ({"mend": self.mend} if self.mend else {}) | {"figures": dict(self.figures)}


def ok(topic: str, sentence: str, **figures: object) -> Finding:
    return Finding(topic, sentence, figures=figures)


def warning(topic: str, sentence: str, mend: str, **figures: object) -> Finding:
    return Finding(topic, sentence, State.WARNING, mend, figures)


def fault(topic: str, sentence: str, mend: str, **figures: object) -> Finding:
    return Finding(topic, sentence, State.FAULT, mend, figures)


def exit_status(findings: Iterable[Finding]) -> int:
    """0 where nothing is to be mended, 1 after a warning, 2 after a fault."""
    states = {finding.state for finding in findings}
    return 2 if State.FAULT in states else int(State.WARNING in states)
