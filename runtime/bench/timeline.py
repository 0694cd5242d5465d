"""A second of a run: whose trees the server verified, and when each edge drafted. Pure."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

from runtime.bench.records import Run, Span

SECOND_S = 1.0

Verified = tuple[float, float, tuple[int, ...]]  # start and end in ms, clients


@dataclass(frozen=True)
class Timeline:
    """Times in milliseconds; clients count from 0."""

    verified: tuple[Verified, ...]
    drafted: tuple[tuple[Span, ...], ...]  # by client

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Timeline":
        """From the JSON of `dataclasses.asdict`. Raises what a wrong form of it leads to."""
        verified = tuple(
            (float(start), float(end), tuple(map(int, clients)))
            for start, end, clients in data["verified"]
        )
        drafted = tuple(
            tuple((float(start), float(end)) for start, end in spans) for spans in data["drafted"]
        )
        return cls(verified, drafted)


def second(run: Run) -> Timeline:
    """From the middle of a run."""
    begin_s = (run.start_s + run.end_s) / 2
    client_of = clients_by_peer(run)

    def ms(start_s: float, end_s: float) -> Span:
        return round(1e3 * (start_s - begin_s), 2), round(1e3 * (end_s - begin_s), 2)

    def is_seen(start_s: float, end_s: float) -> bool:
        return begin_s < end_s and start_s < begin_s + SECOND_S

    verified = tuple(
        (*ms(step.start_s, step.end_s), tuple(sorted(client_of[peer(name)] for name in step.nodes)))
        for step in run.steps
        if is_seen(step.start_s, step.end_s)
    )
    drafted = tuple(
        tuple(
            ms(*span)
            for answer in run.answers
            if answer.client == client
            for span in answer.passes
            if is_seen(*span)
        )
        for client in range(run.clients)
    )
    return Timeline(verified, drafted)


def peer(request: str) -> str:
    """Of a step's request, the connection that it came by."""
    return request.rpartition("/")[0]


def clients_by_peer(run: Run) -> dict[str, int]:
    """Whose connection each is: the server knows no client's number.

    A verdict reaches its own client soon after the step, and another's arrives a step later.
    """
    arrivals = [
        sorted(time_s for a in run.answers if a.client == client for time_s, _ in a.arrivals)
        for client in range(run.clients)
    ]
    ends: dict[str, list[float]] = {}
    for step in run.steps:
        for name in step.nodes:
            ends.setdefault(peer(name), []).append(step.end_s)
    return {
        one: min(range(run.clients), key=lambda client: _delay_s(ends[one], arrivals[client]))
        for one in ends
    }


def _delay_s(ends: Sequence[float], arrivals: Sequence[float]) -> float:
    """From the end of a step to the next arrival, the median."""
    following = [(end, bisect_left(arrivals, end)) for end in ends]
    return median([arrivals[at] - end for end, at in following if at < len(arrivals)] or [inf])
