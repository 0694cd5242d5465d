"""A server in this process, with a tiny model, that can be killed and started again on its port."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.config import ServerConfig
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.server.door import Door, Identity
from runtime.server.loop import Server
from runtime.server.router import Router
from runtime.server.users import load_users
from runtime.wire import messages as wire
from runtime.wire import stacks
from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.places import Listener, listen
from runtime.wire.tls import Certificate
from tests.ports import kept_port

KV_TOKENS, PAGE_TOKENS, MAX_CONTEXT = 2048, 16, 1000


class Rig:
    """What a server process does; `kill` is as sudden as kill -9: nobody is told anything."""

    def __init__(self, model: Path, certificate: Certificate | None = None, **options: Any) -> None:
        self.port, self._kept = 0, ExitStack()
        self._model, self._certificate, self._options = model, certificate, options
        self._tokenizer = Tokenizer.load(str(model))
        self._running: asyncio.Task[None] | None = None

    @property
    def hello(self) -> wire.Hello:
        """An edge's greeting that this server takes."""
        digest = self._tokenizer.vocabulary_hash()
        return wire.Hello(wire.VERSION, self._tokenizer.vocabulary_size, digest, "tiny")

    async def start(self, unready: str = "") -> None:
        """Open the port; with `unready` requests are refused as draining, with that sentence."""
        policy = {"max_nodes": 30, "chunk_tokens": 24, "pipeline": False, "credits": "open"}
        config = ServerConfig(model=str(self._model), **(policy | self._options))
        engine = open_engine(
            str(self._model),
            "float32",
            "cpu",
            lambda model: KV_TOKENS,
            PAGE_TOKENS,
            adapters=config.adapters,
        )
        rows, meaning = engine.model.vocab_size, self._tokenizer.vocabulary_hash
        known_as = engine.model.adapters
        identity = Identity("tiny", rows, meaning, MAX_CONTEXT, frozenset(), None, known_as)
        certificate = self._certificate
        users = load_users(Path(config.users)) if config.users else None
        known = certificate.hash if certificate else NO_CERTIFICATE
        if config.redirect:
            self.router = Router(config.replicas)
            for replica in self.router.replicas:
                replica.told("", 0)
            door = Door(config, None, users, known, router=self.router)
        else:
            door = Door(config, identity, users, known)
        self.server = server = Server(config, engine, door)
        if not self.port and not config.stack:
            self.port = self._kept.enter_context(kept_port())
        place = "127.0.0.1", self.port, server.new_peer
        if config.stack:
            listener: Listener = await stacks.listen(config.stack, *place, certificate)
        else:
            tls = certificate and certificate.context
            listener = await listen(*place, start=False, tls=tls)
        self.port = listener.sockets[0].getsockname()[1]
        opened = asyncio.Event()
        self._running = asyncio.ensure_future(server.run(listener, lambda *_: opened.set()))
        await opened.wait()
        server.edges.unready = unready

    async def kill(self) -> None:
        """Stop at once, without a word on any connection."""
        for peer in self.server.door.peers():
            peer._transport.abort()
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running

    def give_port_back(self) -> None:
        """It is not started again; a rig that is forgotten does it as well."""
        self._kept.close()

    async def drain(self) -> None:
        """Stop as SIGTERM stops a server: running requests have `drain_s` to end."""
        os.kill(os.getpid(), signal.SIGTERM)
        await self._running

    def holds_nothing(self) -> bool:
        """Whether all pages are free or idle in the prefix cache, and no request is left."""
        scheduler = self.server.scheduler
        scheduler.check()
        self.server.pipeline.check(self.server.requests.values())
        if scheduler.running or scheduler.waiting or self.server.requests:
            return False
        return scheduler.cache.room() == KV_TOKENS // PAGE_TOKENS


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Assert that descriptors opened inside are closed at the end; earlier ones may be too."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    if len(os.listdir("/proc/self/fd")) > before:
        gc.collect()  # closes what nobody refers to, but a cycle does
    assert len(os.listdir("/proc/self/fd")) <= before


async def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait for something that nobody tells."""

    async def look() -> None:
        while not holds():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), within_s)
