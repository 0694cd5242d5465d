"""Ports that nobody else gets: where nobody listens, and where servers come and go."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections and that nobody else can get meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def kept_port() -> Iterator[int]:
    """A port of 127.0.0.1 for servers that come one after another, and for nobody in between.

    0, which is any, on systems other than Linux: there it could not be kept and listened at.
    """
    with socket.socket() as kept:
        if sys.platform != "linux":
            yield 0
            return
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]
