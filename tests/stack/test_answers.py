"""Answers by the stack: the text is that of a server and an edge with sockets, whatever happens."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.edge.draft.drafter import Drafter
from runtime.edge.net import link
from runtime.edge.net.watchdog import Watchdog
from runtime.edge.resume import Transcript
from runtime.stack import ports
from tests.faults.moments import Moment
from tests.faults.proxy import Proxy
from tests.faults.rig import Rig, no_descriptor_left, until
from tests.faults.scenarios import PROMPT, SAMPLINGS, Edge, Play, Seer, What, scenario
from tests.stack.daemon import MODULES, SHAPE, Daemon, _stack, daemon, start

LONG = pytest.mark.long
pytestmark = pytest.mark.usefixtures("eager")

FAULTS = (What.CUT, What.RESET, What.SLICE, What.DEAF_EDGE, What.SERVER_KILLED, What.EDGE_KILLED)
CASES = [
    pytest.param(what, module, marks=[] if module == "shm" and what is What.CUT else LONG)
    for what in FAULTS
    for module in ("shm", "emulated")
]


@pytest.fixture(scope="module")
def plain(
    tiny_pair: tuple[Path, Path], drafter: Drafter, tmp_path_factory: pytest.TempPathFactory
) -> list[list[int]]:
    """The texts by sockets."""
    play = Play(tiny_pair[0], drafter, tmp_path_factory.mktemp("plain"), [])
    return asyncio.run(play.run())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "Watchdog", lambda: Watchdog(patience_s=1.0))
    monkeypatch.setattr(ports, "ATTACH_AGAIN_S", 0.02)


@pytest.mark.parametrize(("what", "module"), CASES)
def test_a_fault_between_two_guests(
    tiny_pair: tuple[Path, Path],
    drafter: Drafter,
    plain: list[list[int]],
    tmp_path: Path,
    what: What,
    module: str,
) -> None:
    """On the way from the edge's daemon to the server's, which are one: the proxy is no guest."""
    with daemon("--module", module, *SHAPE) as running, no_descriptor_left():
        events = scenario(what, Moment.TREE)
        play = Play(tiny_pair[0], drafter, tmp_path, events, running.path)
        assert asyncio.run(play.run()) == plain
        assert not play.errors
        # a loop that ended before the last closing was told keeps its guest, until it is collected
        gc.collect()
        asyncio.run(until(lambda: running.status()["guests"] == 0))


Disturb = Callable[[Daemon, Rig], Awaitable[None]]


async def nothing(running: Daemon, rig: Rig) -> None:
    """The answer is left alone."""


async def move(running: Daemon, rig: Rig) -> None:
    """Another module from now on."""
    now = running.status()["module"]
    _stack.move(running.path, MODULES[(MODULES.index(now) + 1) % len(MODULES)])


async def kill_server(running: Daemon, rig: Rig) -> None:
    """And another one comes at its port."""
    await rig.kill()
    await rig.start()


async def kill_daemon(running: Daemon, rig: Rig) -> None:
    """And another one comes at its path."""
    running.process.kill()
    running.process.communicate()
    running.process = start(running.path).process


@asynccontextmanager
async def asking(
    model: Path, drafter: Drafter, folder: Path, running: Daemon
) -> AsyncIterator[tuple[Rig, Edge]]:
    rig = Rig(model, stack=running.path)
    await rig.start()
    address = ("127.0.0.1", rig.port)
    edge = Edge(address, rig, drafter, folder / "answer.json", running.path)
    try:
        yield rig, edge
    finally:
        await edge.close()
        await rig.kill()


QUICK = [(nothing, "shm"), (nothing, "tcp"), (move, "shm"), (kill_daemon, "shm")]
DISTURBED = [
    pytest.param(disturb, module, marks=[] if (disturb, module) in QUICK else LONG)
    for disturb in (nothing, move, kill_server, kill_daemon)
    for module in MODULES
]


@pytest.mark.parametrize(("disturb", "module"), DISTURBED)
def test_guests_of_one_host(
    tiny_pair: tuple[Path, Path],
    drafter: Drafter,
    plain: list[list[int]],
    tmp_path: Path,
    module: str,
    disturb: Disturb,
) -> None:
    """Every round or two something happens; the same words come, each once."""

    async def scene(running: Daemon) -> None:
        async with asking(tiny_pair[0], drafter, tmp_path, running) as (rig, edge):
            for sampling, text in zip(SAMPLINGS, plain, strict=True):
                answer = Transcript(list(PROMPT), replace(sampling))
                rounds, happened = 0, 0

                class Disturber(Seer):
                    def __call__(self, moment: Moment) -> None:
                        nonlocal rounds
                        rounds += 1

                asked = asyncio.ensure_future(edge.ask(answer, Disturber(Proxy([]), None)))
                while not asked.done():
                    await asyncio.sleep(0)
                    if rounds >= 2 * (happened + 1) and happened < 2:
                        happened += 1
                        await disturb(running, rig)
                assert await asked == text
                assert happened

    with daemon("--module", module, *SHAPE) as running:
        asyncio.run(scene(running))
