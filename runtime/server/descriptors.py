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
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def check_descriptors(config: ServerConfig) -> None:
    """Raise the limit to what all connections may need; a warning if that is not granted."""
    edges = config.max_requests + config.max_waiting + config.max_strangers
    wanted = edges + MAX_CONNECTIONS + OWN
    if (limit := raise_descriptor_limit(wanted)) < wanted:
        log.warning(
            "few descriptors",
            extra=fields(
                limit=limit,
                wanted=wanted,
                reason="more edges may come than can be accepted; raise `ulimit -n`",
            ),
        )


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
