"""The event loop that edges and servers have in a thread of a program."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Edge, EdgeConfig
from runtime.background import Background


class OtherLoops(asyncio.DefaultEventLoopPolicy):
    """A program's own kind of event loop, as uvloop.install() makes it."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        uvloop = pytest.importorskip("uvloop")
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop


@pytest.fixture
def other_loops() -> Iterator[None]:
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(OtherLoops())
    yield
    asyncio.set_event_loop_policy(before)


@pytest.mark.usefixtures("other_loops")
def test_it_is_asyncio_s_own_whatever_the_program_uses() -> None:
    async def whose() -> str:
        return type(asyncio.get_running_loop()).__module__

    background = Background()
    assert background.run(whose()).result(30).startswith("asyncio.")
    background.stop()


@pytest.mark.usefixtures("other_loops")
def test_an_edge_answers_in_a_program_of_uvloop_s(
    tiny_server: str, tiny_pair: tuple[Path, Path]
) -> None:
    with Edge(EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=4)) as edge:
        assert len(edge.generate("Once", raw=True).text)
