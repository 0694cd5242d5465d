"""Which web pages may use an endpoint, and how many requests at once.

A browser lets any page send requests to this machine; it says which page it was (Origin), and under
which name it found us (Host). Programs that are no browsers send no Origin, and are not held up.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.api.errors import APIError
from runtime.api.names import misnamed, name_of
from runtime.config import is_loopback

ANY = "*"
PREFLIGHT_S = 600
METHODS = "GET, POST, OPTIONS"
EXPOSED = "Retry-After"


class Guard:
    """An app for those who may ask it.

    origins: pages beside those of this machine, such as "https://chat.example", or "*" for all.
    has_keys: whether the app asks for API keys. Where it does not, it is asked under a name of this
    machine (see `runtime.api.names`).
    """

    def __init__(
        self,
        app: ASGIApp,
        origins: Sequence[str] = (),
        has_keys: bool = False,
        most: int = 1024,
    ) -> None:
        self._app, self._origins, self._has_keys = app, frozenset(origins), has_keys
        self._most, self._running = most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered, refuse the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if (error := self._refusal(headers, origin)) is not None:
            await error.response()(scope, receive, send)
            return
        if origin is not None:
            send = _with_cors(send, origin)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight(headers)(scope, receive, send)
                return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, headers: Headers, origin: str | None) -> APIError | None:
        if not self._has_keys and (sentence := misnamed(headers)):
            return APIError(403, sentence)
        if origin is not None and not self._is_allowed(origin):
            return APIError(403, f"pages of {origin} may not ask this endpoint; see --origins")
        if self._running >= self._most:
            return APIError(429, f"{self._running} requests are running; try again in a while")
        return None

    def _is_allowed(self, origin: str) -> bool:
        return ANY in self._origins or origin in self._origins or is_loopback(name_of(origin))


def _preflight(headers: Headers) -> Response:
    """What a browser asks before it asks."""
    allowed = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
        "Access-Control-Max-Age": str(PREFLIGHT_S),
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)


def _with_cors(send: Send, origin: str) -> Send:
    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = EXPOSED
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_cors
