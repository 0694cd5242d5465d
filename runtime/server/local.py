"""Clients without an edge: OpenAI's API in the server's own process and event loop.

It opens before the model is loaded, and says so until it is.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from runtime.api.app import application, to_look_after
from runtime.api.counting import Counting
from runtime.api.guard import Guard
from runtime.api.of_server import LocalEdges, LocalServer
from runtime.api.serving import serving
from runtime.config import ServerConfig
from runtime.model.tokenizer import Tokenizer
from runtime.server.descriptors import clients_that_fit
from runtime.server.loop import Server
from runtime.server.metrics import Metrics
from runtime.server.renewal import RenewKeys
from runtime.wire.tls import Certificate


@asynccontextmanager
async def serving_clients(
    config: ServerConfig,
    unready: Callable[[], str],
    users: Mapping[str, bytes] | None,
    certificate: Certificate | None,
    metrics: Metrics,
) -> AsyncIterator[tuple[str, Callable[[Server, Tokenizer | None], RenewKeys]]]:
    """Serve the API at `config.openai` while the context lasts.

    Gives its URL and a function that joins it to a server, with the target's tokenizer, and gives
    what is to be told of other users. `unready` says why no requests are taken. Raises ConfigError
    for the users and the chat template, ConnectionError where the address cannot be had.
    """
    edges = LocalEdges(unready, users, config.chat_template)
    most = clients_that_fit(config)

    def join(server: Server, tokenizer: Tokenizer | None) -> RenewKeys:
        assert tokenizer is not None, "clients without an edge need the target's tokenizer"
        door, identity = server.door, server.door.identity
        assert identity is not None, "a server with a model"
        edges.join(
            LocalServer(
                tokenizer,
                door.welcome,
                lambda: door.certificate,
                server.new_peer,
                unready,
                identity.adapters,
            )
        )
        return edges.renew

    app = application(edges.backend_of, to_look_after(unready))
    guarded = Guard(app, config.origins, has_keys=users is not None, most=most)
    counted = Counting(guarded, app.routes, metrics.http_answered, metrics.http_streams)
    tls = certificate.context if certificate else None
    async with serving(config.openai, counted, most, "--openai", tls) as url:
        yield url, join
