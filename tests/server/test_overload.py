"""A full server: what is beyond its limits is refused at once, and who is inside ends unharmed.

The model is a stub that stands still until the test lets it go, so everything here is a count, and
every refusal is proven not to have waited for the model.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from bench.stub_edges import HELLO, decode
from bench.stub_server import IDENTITY, StubEngine
from runtime.config import ServerConfig
from runtime.edge.net.asking import opening
from runtime.edge.net.link import Link, ServerError
from runtime.sampling import Sampling
from runtime.server.door import Door
from runtime.server.loop import Server
from runtime.wire import messages as wire
from runtime.wire.places import listen

TOKENS = 12
PATIENCE_S = 120


@dataclass
class Rig:
    """A server in this process, and the gate that every pass of its model waits at."""

    server: Server
    gate: threading.Event
    address: tuple[str, int]

    def requests(self) -> tuple[int, int]:
        scheduler = self.server.scheduler
        scheduler.check()
        return len(scheduler.running), len(scheduler.waiting)


@asynccontextmanager
async def rig(**limits: int) -> AsyncIterator[Rig]:
    config, gate = ServerConfig(drain_s=0, **limits), threading.Event()
    engine = StubEngine(config.kv_tokens, config.page_size, gate.wait)
    server = Server(config, engine, Door(config, IDENTITY))
    listener = await listen("127.0.0.1", 0, server.new_peer, start=False)
    opened: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(
        server.run(listener, lambda host, port: opened.set_result((host, port)))
    )
    try:
        await asyncio.wait({opened, running}, return_when=asyncio.FIRST_COMPLETED)
        yield Rig(server, gate, opened.result())
    finally:
        gate.set()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(running, PATIENCE_S)
    assert server.scheduler.cache.room() == engine.kv.n_pages, "pages are held by nobody"


async def answer(link: Link, number: int) -> int:
    """Ask for a text, which `decode` checks; the number of its verdicts."""
    return len([s async for s in decode(link, [number % 256] * 20, TOKENS, 4)])


async def refusals(asking: Sequence["asyncio.Task[int]"], count: int) -> list[ServerError]:
    """The first `count` requests to end, which must all be refused."""
    ended = []
    for request in asyncio.as_completed(asking):
        with pytest.raises(ServerError) as refused:
            await request
        ended.append(refused.value)
        if len(ended) == count:
            return ended
    raise AssertionError(f"{len(ended)} requests were refused, not {count}")


@pytest.mark.parametrize(("running", "waiting"), [(4, 6), (1, 0), (8, 40), (16, 1)])
def test_ten_times_as_many_requests(running: int, waiting: int) -> None:
    """While no step ends, all but those that fit are told BUSY; those then get their text."""

    async def scenario() -> None:
        fit = running + waiting
        limits = {"max_requests": running, "max_waiting": waiting, "max_user_requests": 65535}
        async with rig(**limits) as full, AsyncExitStack() as stack:
            links = [await Link.open(*full.address, HELLO) for _ in range(10)]
            for link in links:
                stack.push_async_callback(link.close)
            asking = [
                asyncio.create_task(answer(links[number % 10], number))
                for number in range(10 * fit)
            ]
            refused = await refusals(asking, 9 * fit)
            assert {error.code for error in refused} == {wire.ErrorCode.BUSY}
            assert {str(error) for error in refused} == {
                "the server is full; try again in a few seconds"
            }
            assert full.requests() == (running, waiting)
            assert not full.server.totals.steps, "a step has ended"
            full.gate.set()
            ended = await asyncio.gather(*asking, return_exceptions=True)
            assert sum(isinstance(verdicts, int) for verdicts in ended) == fit
            # the connection of a refused request is as good as before
            assert [await answer(link, 1) for link in links]
            assert full.requests() == (0, 0)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_prompts_that_never_end_count_too() -> None:
    """Against the limit of their user, until their connection goes."""

    async def scenario() -> None:
        async with rig(max_requests=64, max_waiting=64, max_user_requests=5) as full:
            greedy, modest = [await Link.open(*full.address, HELLO) for _ in range(2)]
            for number in range(40_000, 40_003):
                greedy._peer.send(opening(Sampling(TOKENS), number, 9, 0))
                greedy._peer.send(wire.Prompt(number, (1, 2)))
            lost = [greedy.request([1], Sampling(TOKENS)) for _ in range(2)]
            while len(full.server.requests) < 5:  # two connections are not ordered
                await asyncio.sleep(0)
            for number in range(5):
                with pytest.raises(ServerError, match="5 of your requests are running") as refused:
                    await answer(modest, number)
                assert refused.value.code is wire.ErrorCode.BUSY
            assert full.requests() == (len(lost), 0)
            await greedy.close()
            while full.server.requests:
                await asyncio.sleep(0)
            full.gate.set()
            await asyncio.gather(*(answer(modest, number) for number in range(5)))
            assert full.requests() == (0, 0)
            await modest.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_more_text_than_pages_is_finished_page_by_page() -> None:
    """Forty requests that need four times the pool: all are answered, none is refused."""

    async def scenario() -> None:
        limits = {"max_requests": 64, "max_user_requests": 64, "max_nodes": 8, "kv_tokens": 512}
        async with rig(**limits) as full:
            link = await Link.open(*full.address, HELLO)
            full.gate.set()
            asking = [answer(link, number) for number in range(64)]
            assert all(await asyncio.gather(*asking))
            assert full.requests() == (0, 0)
            await link.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
