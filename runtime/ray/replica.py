"""A replica of a Ray application: a server in the process of a Ray actor."""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from runtime.background import Background
from runtime.config import ServerConfig, is_loopback, prepare_threads
from runtime.console import Terminal
from runtime.ray.actor import first, still_there
from runtime.ray.front import BEAT_S, Word

if TYPE_CHECKING:  # torch is imported only where a model runs, after its threads are prepared
    from runtime.server import loop

ANSWER_S = 5.0  # that a word to the front may take


class Server:
    """A Ray Serve deployment: it listens before it counts as started, and drains before it ends.

    config: its port and host are chosen here; front: Ray's handle of the Front;
    most_waiting: requests that may wait in line before one replica more is wanted.
    The server has an event loop of its own: Ray's is uvloop's, and has Ray's work to do.
    """

    async def __init__(  # type: ignore[misc]
        self, config: ServerConfig, front: Any, most_waiting: int
    ) -> None:
        prepare_threads(config, os.environ)
        from runtime.server.start import serve

        self._front, self._most_waiting = front, most_waiting
        self._number: int | None = None
        host = config.host if is_loopback(config.host) else ray.util.get_node_ip_address()
        config = replace(config, host=host, port=0, http="")
        opened: Future[tuple[str, int]] = Future()
        self._background = Background()
        self._serving = self._background.run(
            serve(
                config,
                Terminal(quiet=True),
                opened=lambda *place: opened.set_result(place),
                made=self._made,
            )
        )
        self._place = await first(opened, self._serving)
        await self._tell_if_heard()  # it counts as started when the front knows it
        self._telling = asyncio.ensure_future(self._tell_forever())

    def _made(self, server: "loop.Server") -> None:
        self._server = server

    def check_health(self) -> None:
        """For Ray, which starts a replica again that raises."""
        still_there(self._serving)

    def record_autoscaling_stats(self) -> Mapping[str, float]:
        """What `scaling.wanted` asks for."""
        scheduler = self._server.scheduler
        waiting, running = len(scheduler.waiting), len(scheduler.running)
        return {
            "line": waiting / self._most_waiting,
            "load": (waiting + running) / scheduler.limits.max_requests,
        }

    async def __del__(self) -> None:
        """Ray wants it gone: running requests have `drain_s` to end, new ones go elsewhere."""
        self._background.run(self._stop())
        await asyncio.wait((asyncio.wrap_future(self._serving),))
        self._telling.cancel()

    async def _stop(self) -> None:
        self._server.stop()

    async def _tell_forever(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._tell_if_heard()

    async def _tell_if_heard(self) -> None:
        """A front that is away is there again some time, and is told then."""
        with suppress(RayError, asyncio.TimeoutError):
            await asyncio.wait_for(self._tell(), ANSWER_S)

    async def _tell(self) -> None:
        word = await asyncio.wrap_future(self._background.run(self._word()))
        self._number = await self._front.here.remote(word)

    async def _word(self) -> Word:
        """Said by the server's own event loop: where that stands still, nothing is said."""
        server = self._server
        return Word(self._number, *self._place, server.unready, len(server.door.admitted))
