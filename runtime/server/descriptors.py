"""Files and sockets that a process may have open: whether they suffice, and a word if not.

Knows no connections: who is let in is the door's business.
"""

import asyncio
import errno
import logging
from typing import Any

from runtime.config import ServerConfig
from runtime.logs import Seldom, fields
from runtime.server.http import MAX_CONNECTIONS
from runtime.system import raise_descriptor_limit

log = logging.getLogger(__name__)

OWN = 64  # the model's files, the listeners, the event loop, what libraries keep open
MAX_CLIENTS = 1024  # of the OpenAI API, connected at once
KEPT = OWN + MAX_CONNECTIONS  # so that /health answers however many edges there are
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def edges_that_fit(config: ServerConfig) -> int:
    """Connections of edges that leave enough descriptors for the pages and all else.

    Raises this process's limit to what all connections may need, as far as it may.
    """
    edges = config.max_connections + config.max_strangers
    limit = raise_descriptor_limit(_wanted(config))
    left = limit - KEPT - clients_that_fit(config)
    return min(edges, max(left, limit // 4))


def clients_that_fit(config: ServerConfig) -> int:
    """Connections of the OpenAI API; none where it is not served."""
    if not config.openai:
        return 0
    return min(MAX_CLIENTS, raise_descriptor_limit(_wanted(config)) // 4)


def _wanted(config: ServerConfig) -> int:
    clients = MAX_CLIENTS if config.openai else 0
    return config.max_connections + config.max_strangers + clients + KEPT


def check_descriptors(config: ServerConfig) -> None:
    """A warning if there are not enough for all edges that may come."""
    edges, fit = config.max_connections + config.max_strangers, edges_that_fit(config)
    if fit < edges:
        about = fields(
            limit=raise_descriptor_limit(_wanted(config)),
            wanted=_wanted(config),
            reason=f"{fit} edges can be connected at once; raise `ulimit -n`",
        )
        log.warning("few descriptors", extra=about)


def tell_accept_failures(loop: asyncio.AbstractEventLoop) -> None:
    """One line a minute about connections that the system refuses.

    asyncio itself tells of each, a hundred times a second, with a traceback.
    """
    tell = Seldom(log, "cannot accept")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED:
            loop.default_exception_handler(context)
        else:
            tell(f"{error.strerror}; raise `ulimit -n`, or lower --max-strangers")

    loop.set_exception_handler(handle)
