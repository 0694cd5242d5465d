"""A server's page: its steps as a moving timeline, and how its requests stand.

Tells numbers only: edges are numbered in the order in which they are seen, and no text, user or
address is told.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from runtime.pages import files
from runtime.pages.feed import Feed
from runtime.server.request import Phase, Request
from runtime.server.schedule.step import Step

MOST_REQUESTS = 200  # in the table


class ServerPage:
    """Tells its watchers of every step; `requests` gives those that are open."""

    def __init__(
        self,
        requests: Callable[[], Iterable[Request]],
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self._requests, self._on_step = requests, on_step
        self._feed = Feed(self._now)
        self._numbers: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._next = itertools.count(1)

    def step(self, step: Step) -> None:
        """A step has ended; whoever else wants to know is told too."""
        self._on_step(step)
        if self._feed.watched:
            self._feed.tell("step", self._step_fields(step))

    def routes(self) -> list[BaseRoute]:
        """The page, its files, and its events."""

        async def events(request: HTTPRequest) -> Response:
            return self._feed.response()

        return [*files.routes("server"), Route("/events", events)]

    def _edge(self, request: Request) -> int:
        """The number of a request's edge."""
        peer, _ = request.key
        if peer not in self._numbers:
            self._numbers[peer] = next(self._next)
        return self._numbers[peer]

    def _step_fields(self, step: Step) -> dict[str, Any]:
        """`parts`: [edge, request, rows, accepted] for each tree; times in seconds."""
        parts = [
            [self._edge(work.request), work.request.key[1], work.nodes + 1, work.accepted or 0]
            for work in step.verified
        ]
        return {
            "start_s": step.start_s,
            "end_s": step.end_s,
            "chunk_rows": step.chunk_rows,
            "parts": parts,
        }

    def _now(self) -> dict[str, Any]:
        requests = [*self._requests()]
        phases = [request.phase for request in requests]
        return {
            "now_s": time.monotonic(),
            "phases": {phase.name.lower(): phases.count(phase) for phase in Phase},
            "credits": sum(request.has_credit for request in requests),
            "pages": sum(len(request.pages) for request in requests),
            "requests": [*map(self._row, requests[:MOST_REQUESTS])],
        }

    def _row(self, request: Request) -> dict[str, Any]:
        return {
            "edge": self._edge(request),
            "request": request.key[1],
            "phase": request.phase.name.lower(),
            "waits_for": request.phase.value,
            "prompt": request.params.prompt_tokens,
            "tokens": max(len(request.context) - request.params.prompt_tokens, 0),
            "plain": request.is_plain,
            "credit": request.has_credit,
            "round_trip_ms": round(request.edge.rtt_s.value * 1e3, 1),
        }
