"""kill -9 of real servers and edges at random bytes of an answer: the text is one without it."""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Transcript, resuming
from runtime.sampling import Sampling
from tests.faults.amounts import amount
from tests.faults.proxy import Fault, Kind, Proxy
from tests.faults.rig import Rig, until
from tests.faults.scenarios import DRAFTING, PROMPT
from tests.ports import kept_port
from tests.processes import Child

SAMPLING = Sampling(60, temperature=1.0, seed=5)

Report = Callable[[str, object], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", amount(metafunc.config, "kills", default=3))


def server(model: Path, port: int) -> Child:
    options = ["--model", str(model), "--port", str(port), "--http", "", "--threads", "1"]
    options += ["--kv-tokens", "2048", "--no-pipeline", "--credits", "open", "--weights", "float32"]
    return Child("runtime.server", *options)


def edge(draft: Path, port: int, file: Path, *more: str) -> Child:
    options = ["--draft", str(draft), "--temperature", "1", "--seed", "5", "--max-tokens", "120"]
    options += ["--server", f"127.0.0.1:{port}", "--resume-file", str(file), "--weights", "float32"]
    return Child("runtime.edge", *options, *more)


@pytest.fixture(scope="module")
def server_text(tiny_pair: tuple[Path, Path], drafter: Drafter) -> list[int]:
    """What an edge is told when nobody dies."""
    return asyncio.run(ask_a_server_that_dies(tiny_pair[0], drafter, None))[0]


async def ask_a_server_that_dies(
    model: Path, drafter: Drafter, fault: Fault | None
) -> tuple[list[int], float]:
    """The text, and the seconds from the port's being back until the text went on."""
    with kept_port() as port:
        return await ask_at_a_port_whose_server_dies(model, drafter, fault, port)


async def ask_at_a_port_whose_server_dies(
    model: Path, drafter: Drafter, fault: Fault | None, port: int
) -> tuple[list[int], float]:
    victim = server(model, port)
    port = int((await victim.line_with("--server")).split("--server ")[1].split()[0].split(":")[1])
    restarting: list[asyncio.Task[tuple[Child, float]]] = []

    async def restart() -> tuple[Child, float]:
        victim.kill()
        assert (await victim.end())[1] == -signal.SIGKILL
        heir = server(model, port)
        await heir.line_with("--server")
        return heir, time.monotonic()

    def strike(fault: Fault) -> None:
        restarting.append(asyncio.ensure_future(restart()))

    told: list[int] = []
    resumed_s: list[float] = []  # when rounds came after the strike
    async with Proxy([fault], on_fault=strike).before("127.0.0.1", port) as proxy:
        uplink, batcher = Uplink(*proxy.address, Rig(model).hello), Batcher(drafter)
        answer = Transcript(list(PROMPT), SAMPLING)
        async with aclosing(resuming(uplink, batcher, answer, DRAFTING, 120.0)) as rounds:
            async for round_ in rounds:
                told += round_.tokens
                if proxy.connections > 1:
                    resumed_s.append(time.monotonic())
        await uplink.close()
        await batcher.close()
    back_s = 0.0
    if restarting:
        victim, back_s = await restarting[0]
    victim.kill()
    await victim.end()
    return told, min(resumed_s, default=back_s) - back_s


def test_a_server_killed(
    tiny_pair: tuple[Path, Path],
    drafter: Drafter,
    server_text: list[int],
    record_property: Report,
    seed: int,
) -> None:
    rng = random.Random(seed)
    fault = Fault(Kind.TELL, rng.random() < 0.5, rng.randint(1, 400))
    text, resumed_s = asyncio.run(ask_a_server_that_dies(tiny_pair[0], drafter, fault))
    assert text == server_text
    assert len(text) == SAMPLING.max_tokens
    record_property("server killed: seconds from its port's being back to the next text", resumed_s)


@pytest.fixture(scope="module")
def edge_text(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("whole") / "answer.json"
    return asyncio.run(ask_by_an_edge_that_dies(tiny_pair, file, None))[0]


async def ask_by_an_edge_that_dies(
    pair: tuple[Path, Path], file: Path, fault: Fault | None
) -> tuple[str, float]:
    """The text that the last edge prints, and the seconds until the first one's pages were free."""
    target, draft = pair
    prompt = ("--prompt", "Once upon a time")
    rig, killed_s = Rig(target), list[float]()
    await rig.start()

    def strike(fault: Fault) -> None:
        killed_s.append(time.monotonic())
        first.kill()

    freed_s = 0.0
    # an edge comes once to see whether anybody listens, and once to stay
    async with Proxy([None, fault], on_fault=strike).before("127.0.0.1", rig.port) as proxy:
        first = edge(draft, proxy.address[1], file, *prompt)
        text, status = await first.end()
        assert status == (0 if fault is None else -signal.SIGKILL)
        if fault is not None:
            await until(rig.holds_nothing)
            freed_s = time.monotonic() - killed_s[0]
            heir = edge(draft, proxy.address[1], file, *(() if file.exists() else prompt))
            text, status = await heir.end()
            assert status == 0
    await until(rig.holds_nothing)
    await rig.kill()
    assert not file.exists()
    return text, freed_s


def test_an_edge_killed(
    tiny_pair: tuple[Path, Path],
    edge_text: str,
    tmp_path: Path,
    record_property: Report,
    seed: int,
) -> None:
    rng = random.Random(seed)
    fault = Fault(Kind.TELL, rng.random() < 0.5, rng.randint(1, 600))
    text, freed_s = asyncio.run(ask_by_an_edge_that_dies(tiny_pair, tmp_path / "answer", fault))
    assert text == edge_text
    record_property("edge killed: seconds until its pages are free", freed_s)
