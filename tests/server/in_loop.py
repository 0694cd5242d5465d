"""A server of a model in the event loop of a test, and how edges in that loop see it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from runtime.config import ServerConfig
from runtime.edge.local import LocalEdge, LocalServer
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.server.door import Door, Identity
from runtime.server.loop import Server
from runtime.server.spilling import folder_of, spilling_of
from runtime.wire import messages as wire
from runtime.wire.places import listen

USERS = {"alice": b"a" * 32, "bob": b"b" * 32}


class Serving:
    """A server of the tiny target in this event loop, and how its local edges see it."""

    def __init__(self, target: Path, users: dict[str, bytes] | None = None, **options: object):
        self.held = ExitStack()
        tokenizer = Tokenizer.load(target)
        config = ServerConfig(port=0, **options)
        engine = open_engine(
            str(target),
            "stored",
            "cpu",
            lambda model: config.kv_tokens or 4096,
            16,
            adapters=config.adapters,
        )
        adapters = engine.model.adapters
        meaning, stops = tokenizer.hashes.below, frozenset({257})
        identity = Identity("tiny", 260, meaning, 1024, stops, None, adapters)
        self.door = Door(config, identity, users)
        folder = self.held.enter_context(folder_of(config))
        spilling = spilling_of(config, engine.kv, folder)
        self.server = Server(config, engine, self.door, spilling=spilling)
        self.all_pages = self.free_pages
        self.hello = wire.Hello(1, 260, tokenizer.hashes.below(260), "tiny")
        self.local = LocalServer(
            tokenizer,
            self.door.welcome,
            lambda: self.door.certificate,
            self.server.new_peer,
            lambda: self.server.unready,
            adapters,
        )

    def edge(self, user: str = "") -> LocalEdge:
        return LocalEdge(self.local, user, USERS.get(user, b""))

    async def run(self, opened: Callable[[str, int], None]) -> None:
        listener = await listen("127.0.0.1", 0, self.server.new_peer, start=False)
        await self.server.run(listener, opened)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await asyncio.sleep(0)

    @property
    def free_pages(self) -> int:
        return self.server.scheduler.cache.room()


@asynccontextmanager
async def serving(*arguments: object, **options: object) -> AsyncIterator[Serving]:
    it = Serving(*arguments, **options)
    opened: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(it.run(lambda host, port: opened.set_result((host, port))))
    try:
        it.address = await opened
        yield it
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        it.held.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))
