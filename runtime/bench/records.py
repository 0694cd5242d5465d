"""What one run of the bench saw: answers, verification steps, times.

All times are seconds of time.monotonic(), which the processes of one machine share. Records hold
what was observed and judge nothing; `figures.py` does.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Span = tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """One prompt's answer as its client saw it."""

    prompt: int  # which of the run's prompts
    ids: tuple[int, ...]
    asked_s: float
    arrivals: tuple[tuple[float, int], ...]  # when text came, and how many tokens there were then
    verifications: int
    client: int = 0
    wire_bytes: int = 0
    proactive_hits: int = 0
    proactive_rounds: int = 0
    passes: tuple[Span, ...] = ()  # of the draft model, while this answer was made

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Answer":
        """From the JSON of `dataclasses.asdict`."""
        pairs = {name: tuple(map(tuple, data[name])) for name in ("arrivals", "passes")}
        return cls(**{**data, **pairs, "ids": tuple(data["ids"])})


@dataclass(frozen=True)
class Step:
    """One step of the target model, with the draft nodes that each request had in it."""

    start_s: float
    end_s: float
    chunk_rows: int = 0  # prompt tokens that were read along
    nodes: Mapping[str, int] = field(default_factory=dict)  # by request; the root is not counted
    others_s: float = 0.0  # that others had the server's cores since the step before; of stand-ins

    @property
    def verifies_only(self) -> bool:
        """Whether no prompt was read along with the trees."""
        return bool(self.nodes) and not self.chunk_rows


@dataclass(frozen=True)
class Run:
    """One workload in one mode. From `start_s` to `end_s` every client was busy."""

    mode: str
    clients: int
    edges: int  # machines that are paid for besides the server
    start_s: float
    end_s: float
    answers: tuple[Answer, ...]
    steps: tuple[Step, ...]
    drafting: tuple[Span, ...] = ()  # on the server itself, where it drafts

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Run":
        """From the JSON of `dataclasses.asdict`."""
        answers = tuple(map(Answer.read, data["answers"]))
        steps = tuple(Step(**step) for step in data["steps"])
        drafting = tuple(map(tuple, data["drafting"]))
        return cls(**{**data, "answers": answers, "steps": steps, "drafting": drafting})


def read_trace(path: Path) -> tuple[Step, ...]:
    """The steps that a server wrote with --trace, oldest first."""
    return tuple(read_steps(map(json.loads, path.read_text(encoding="utf-8").splitlines())))


def read_steps(lines: Iterable[Mapping[str, Any]]) -> Iterable[Step]:
    """One step for each object of a trace."""
    for line in lines:
        nodes = {f"{peer}/{request}": count for peer, request, count, _ in line["requests"]}
        times_s = line["start_s"], line["end_s"]
        yield Step(*times_s, line["chunk_rows"], nodes, line.get("others_s", 0.0))
