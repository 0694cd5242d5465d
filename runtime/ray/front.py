"""The front of a Ray application: the one address that people give to their edges.

It is `python -m runtime.server --redirect`, but for how replicas are known: each says where it is,
and how, twice a second. It numbers them, and hashes the numbers: what takes the place of a replica
that died takes its number, and so its users.
"""

import asyncio
import time
from concurrent.futures import Future
from itertools import count
from typing import NamedTuple

from runtime.background import Background
from runtime.config import ReplicaAddress, ServerConfig
from runtime.console import Terminal
from runtime.ray.actor import first, still_there
from runtime.server.router import Replica, Router

BEAT_S = 0.5  # between two words of a replica
SILENCE_S = 2.0  # after which no edge is sent there, and its number is free


class Word(NamedTuple):
    """What a replica says of itself; number: the one that it was given, None before."""

    number: int | None
    host: str
    port: int
    unready: str
    edges: int


class Front:
    """A Ray Serve deployment of one replica, for two could not have the port on one machine."""

    async def __init__(self, config: ServerConfig) -> None:  # type: ignore[misc]
        from runtime.server.start import redirect

        self._members = Members()
        opened: Future[tuple[str, int]] = Future()
        self._background = Background()
        self._serving = self._background.run(
            redirect(
                config,
                Terminal(),
                self._members.router,
                opened=lambda *place: opened.set_result(place),
            )
        )
        self._address = await first(opened, self._serving)
        self._background.run(self._forget_forever())

    async def here(self, word: Word) -> int:
        """A replica says where and how it is; its number."""
        return await asyncio.wrap_future(self._background.run(self._heard(word)))

    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._address

    async def replicas(self) -> dict[str, str]:
        """By name, why no edge is sent there; empty if edges are."""
        return await asyncio.wrap_future(self._background.run(self._reasons()))

    def check_health(self) -> None:
        """For Ray, which starts a front again that raises."""
        still_there(self._serving)

    async def __del__(self) -> None:
        await asyncio.to_thread(self._background.stop)

    async def _heard(self, word: Word) -> int:
        return self._members.heard(word, time.monotonic())

    async def _reasons(self) -> dict[str, str]:
        return {one.address.name: one.unready for one in self._members.router.replicas}

    async def _forget_forever(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._members.forget(time.monotonic())


class Members:
    """The replicas of a router, by number, and when each was heard of. Knows no Ray."""

    def __init__(self) -> None:
        self.router = Router(())
        self._replicas: dict[int, Replica] = {}
        self._heard_s: dict[int, float] = {}

    def heard(self, word: Word, now_s: float) -> int:
        """The number of the replica that says this, as it was unless another one has it now."""
        place = word.host, word.port
        number = word.number
        if number is None or not self._is_of(number, place):
            number = next(n for n in count() if n not in self._replicas)
        if number not in self._replicas:
            address = ReplicaAddress(f"replica {number}", place, None)
            self._replicas[number] = Replica(address)
            self.router.replicas.append(self._replicas[number])
        self._heard_s[number] = now_s
        self._replicas[number].told(word.unready, word.edges)
        return number

    def forget(self, now_s: float) -> None:
        """Those of which nothing has been heard for too long are no replicas any more."""
        for number, heard_s in [*self._heard_s.items()]:
            if now_s - heard_s > SILENCE_S:
                del self._heard_s[number]
                self.router.replicas.remove(self._replicas.pop(number))

    def _is_of(self, number: int, place: tuple[str, int]) -> bool:
        """Whether it may have this number: it has, or, after the front's restart, nobody has."""
        known = self._replicas.get(number)
        return known is None or known.address.edges == place
