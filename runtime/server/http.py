"""The server's HTTP side: /health, /ready and /metrics, for load balancers and Prometheus.

It runs in the event loop that serves the edges, so an answer tells that this loop turns; it opens
before the model is loaded. Needs no token and tells nothing about any user: it belongs on loopback
or into a private network. Knows neither edges nor the model.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from runtime.config import parse_address
from runtime.wire.places import listen

MAX_CONNECTIONS = 64
RETRY_AFTER_S = 5


def application(
    unready: Callable[[], str], registry: CollectorRegistry, more: Sequence[BaseRoute] = ()
) -> Starlette:
    """The three pages, and `more`. `unready` says why no requests are taken, or nothing."""

    async def health(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def ready(request: Request) -> Response:
        if reason := unready():
            after = {"Retry-After": str(RETRY_AFTER_S)}
            return PlainTextResponse(f"{reason}\n", status_code=503, headers=after)
        return PlainTextResponse("ready\n")

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    pages = {"/health": health, "/ready": ready, "/metrics": metrics}
    return Starlette(routes=[*more, *(Route(path, page) for path, page in pages.items())])


@asynccontextmanager
async def serving(address: str, app: Starlette) -> AsyncIterator[str]:
    """Serve the pages at host:port while the context lasts; gives their URL.

    Port 0 picks a free one. Raises what `listen` raises if the address cannot be had.
    """
    try:
        reserved = await listen(*parse_address(address, "--http", 0), asyncio.Protocol, start=False)
    except ConnectionError as error:
        sentence = f'{error}; give --http another address, or "" for none'
        raise type(error)(sentence) from error
    sockets = [socket.dup() for socket in reserved.sockets]
    for socket in sockets:
        socket.listen()  # whoever reads the URL may connect, even before the first turn below
    host, port = sockets[0].getsockname()[:2]
    reserved.close()
    server = _Quiet(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            http="h11",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
    )
    running = asyncio.ensure_future(server.serve(sockets))
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await running


class _Quiet(uvicorn.Server):
    """Leaves the signals to the server that it belongs to."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
