"""The endpoint of a server, for clients without an edge: each user gets one in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.api.backend import Backend
from runtime.api.keys import Keys
from runtime.edge.local import LocalEdge, LocalServer
from runtime.edge.net.link import ServerError
from runtime.edge.prompts import read_template

__all__ = ["LocalEdges", "LocalServer"]


class LocalEdges:
    """The users' edges; there are none before the server has a model."""

    def __init__(
        self,
        unready: Callable[[], str],
        users: Mapping[str, bytes] | None,
        chat_template: str = "",
    ) -> None:
        """users: tokens by name; None asks nobody who they are. chat_template: a file, empty for
        the model's own. Raises ConfigError."""
        read_template(chat_template)  # what is wrong with it is known at the start
        self._unready, self._template = unready, chat_template
        self._users, self._keys = users, Keys(users) if users is not None else None
        self._server: LocalServer | None = None
        self._edges: dict[str, LocalEdge] = {}

    def join(self, server: LocalServer) -> None:
        """From now on answers are written."""
        self._server = server

    def renew(self, users: Mapping[str, bytes] | None) -> None:
        """Tokens as they are from now on. Raises ConfigError, and keeps those there were."""
        keys = Keys(users) if users is not None else None
        before, self._users, self._keys = self._users or {}, users, keys
        now = users or {}
        for name in [name for name in self._edges if now.get(name) != before.get(name)]:
            del self._edges[name]  # it ends with its last answer

    async def backend_of(self, key: str | None) -> Backend:
        """The edge of the user whose token the key is. Raises UnknownKey, or ServerError."""
        user = self._keys.name_of(key) if self._keys is not None else ""
        if self._server is None:
            raise ServerError(self._unready())
        if user not in self._edges:
            token = self._users[user] if self._users is not None else b""
            self._edges[user] = LocalEdge(self._server, user, token, self._template)
        return self._edges[user]
