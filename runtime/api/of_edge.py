"""The endpoint of an edge: python -m runtime.edge --serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runtime.api.app import application
from runtime.api.backend import Backend
from runtime.api.serving import serving
from runtime.config import EdgeConfig
from runtime.edge.client import AsyncEdge
from runtime.edge.net.link import ServerError

LOOK_S = 1.0  # between two looks whether the server is there


class EdgeBackend(AsyncEdge):
    """An edge that says why it cannot be asked."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__(config)
        self._reason = f"the draft model is being loaded, and {config.server} greeted"

    def unready(self) -> str:
        """Why no request can be taken now, as a sentence; empty if one can."""
        return "" if self.connected else self._reason

    async def stay_connected(self) -> None:
        """Connect, and look for the server again whenever it is lost; until it is cancelled.

        Raises ConfigError or ModelError.
        """
        while True:
            try:
                await self.connect()
            except ServerError as error:
                self._reason = str(error)
            else:
                self._reason = f"the connection to {self.config.server} is lost"
            await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def endpoint(config: EdgeConfig) -> AsyncIterator[tuple[str, EdgeBackend]]:
    """Serve an edge at `config.http` while the context lasts; gives the URL."""
    backend = EdgeBackend(config)

    async def backend_of(key: str | None) -> Backend:
        return backend

    try:
        async with serving(config.http, application(backend_of)) as url:
            yield url, backend
    finally:
        await backend.close()


async def serve(config: EdgeConfig, tell: Callable[[str], None]) -> None:
    """Serve until it is cancelled.

    Raises ConfigError or ModelError for what the user can mend, ConnectionError where the address
    cannot be had.
    """
    async with endpoint(config) as (url, backend):
        tell(f"{url}/v1")
        await backend.stay_connected()
