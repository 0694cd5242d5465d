"""Names under which a browser may ask this machine (Host); a page may have one that leads here.

A page of anybody's whose name leads to a loopback address (DNS rebinding) would read what it finds
there as its own. It is told by its name. Knows nothing of what is asked for.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.config import is_loopback


class OfThisMachine:
    """An app for those who ask it under a name of this machine; others get status 403."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered, refuse the rest."""
        app = self._app
        if scope["type"] == "http" and (sentence := misnamed(Headers(scope=scope))):
            app = PlainTextResponse(f"{sentence}\n", status_code=403)
        await app(scope, receive, send)


def misnamed(headers: Headers) -> str:
    """Why Host is no loopback name; empty where it is one."""
    host = name_of(f"//{headers.get('host', 'localhost')}")
    if is_loopback(host):
        return ""
    return f"this endpoint is not {host}; ask it by the address it was given"


def name_of(url: str) -> str:
    """The host of a URL, empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
