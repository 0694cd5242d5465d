"""The endpoint of a server, for clients without an edge: each user gets one in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.api.backend import Backend
from runtime.api.keys import Keys
from runtime.edge.local import LocalEdge, LocalServer
from runtime.edge.net.link import ServerError

__all__ = ["LocalEdges", "LocalServer"]


class LocalEdges:
    """The users' edges; there are none before the server has a model."""

    def __init__(self, unready: Callable[[], str], users: Mapping[str, bytes] | None) -> None:
        """users: tokens by name; None asks nobody who they are. Raises ConfigError."""
        self._unready = unready
        self._users, self._keys = users, Keys(users) if users is not None else None
        self._server: LocalServer | None = None
        self._edges: dict[str, LocalEdge] = {}

    def join(self, server: LocalServer) -> None:
        """From now on answers are written."""
        self._server = server

    async def backend_of(self, key: str | None) -> Backend:
        """The edge of the user whose token the key is. Raises UnknownKey, or ServerError."""
        user = self._keys.name_of(key) if self._keys is not None else ""
        if self._server is None:
            raise ServerError(self._unready())
        if user not in self._edges:
            token = self._users[user] if self._users is not None else b""
            self._edges[user] = LocalEdge(self._server, user, token)
        return self._edges[user]
