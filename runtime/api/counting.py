"""How often each route was answered and how, and how many answers are being streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GIVEN_UP = 499  # the client went away before there was an answer; nginx says it so


class Gauge(Protocol):
    """A number that goes up and down."""

    def inc(self) -> None:
        """One more."""

    def dec(self) -> None:
        """One less."""


class Counting:
    """An app around another: `answered(route, status)` hears of each request that is over.

    The route is that of the app; there are as many as it has, and "other".
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[BaseRoute],
        answered: Callable[[str, int], None],
        streams: Gauge,
    ) -> None:
        self._app, self._routes = app, routes
        self._answered, self._streams = answered, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, is_stream = GIVEN_UP, False

        async def seen(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = _is_stream(message)
                if is_stream:
                    self._streams.inc()
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            if is_stream:
                self._streams.dec()
            self._answered(self._route(scope), status)

    def _route(self, scope: Scope) -> str:
        for route in self._routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


def _is_stream(start: Message) -> bool:
    headers = dict(start["headers"])
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))
