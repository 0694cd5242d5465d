"""The server's HTTP side: /health, /ready and /metrics, for load balancers and Prometheus.

It runs in the event loop that serves the edges, so an answer tells that this loop turns; it opens
before the model is loaded. Needs no token and tells nothing about any user: it belongs on loopback
or into a private network. Knows neither edges nor the model.
"""

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

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
        # whatever is accepted: in OpenMetrics the colon of our names would become an underscore
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    pages = {"/health": health, "/ready": ready, "/metrics": metrics}
    return Starlette(routes=[*more, *(Route(path, page) for path, page in pages.items())])
