"""Links cut anywhere, servers killed at any point: the text is that of a run without faults."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from runtime.config import EdgeConfig, parse_address
from runtime.edge.client import Edge
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting
from runtime.edge.net.link import NO_CREDENTIALS, Credentials, ServerError
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Transcript, resuming
from runtime.model.open import open_engine
from runtime.sampling import Sampling
from runtime.terminal import inert
from runtime.wire.tls import load_certificate, trust
from tests.faults.proxy import Fault, Kind, Proxy, Shape
from tests.faults.rig import Rig, no_descriptor_left, until
from tests.server.test_door import self_signed

PROMPT = [7, 3, 200, 41, 5, 99, 12]
TOKENS = 40
GREEDY = Sampling(TOKENS)
# the rest of an answer must know which tokens of its prompt were said
PENALTIES = {"frequency_penalty": 0.6, "presence_penalty": 0.4, "repetition_penalty": 1.3}
SAMPLED = Sampling(TOKENS, temperature=1.0, seed=5, **PENALTIES)
DRAFTING = Drafting(TreeShape(8, 3, 3, 3))

# the bytes that an answer takes do not depend on how fast the machine is
pytestmark = pytest.mark.usefixtures("eager")

# an answer through an uplink: its tokens, and how many links it took
Ask = Callable[..., Awaitable[tuple[list[int], int]]]


@pytest.fixture(scope="module")
def ask(tiny_pair: tuple[Path, Path]) -> Ask:
    """Ask a server with the tiny draft; the drafter serves one answer after another."""
    engine = open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 1024, 16)
    drafter = Drafter(engine)

    async def ask(
        rig: Rig,
        sampling: Sampling,
        address: tuple[str, int] | None = None,
        reconnect_s: float = 30.0,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> tuple[list[int], int]:
        where = address or ("127.0.0.1", rig.port)
        uplink, batcher = Uplink(*where, rig.hello, credentials), Batcher(drafter)
        answer = Transcript(list(PROMPT), sampling)
        told: list[int] = []
        try:
            going = resuming(uplink, batcher, answer, DRAFTING, reconnect_s)
            async with aclosing(going) as rounds:
                async for round_ in rounds:
                    told += round_.tokens
        finally:
            await uplink.close()
            await batcher.close()
        assert told == answer.accepted
        return told, uplink.opened

    return ask


@pytest.fixture(scope="module")
def plain(tiny_pair: tuple[Path, Path], ask: Ask) -> dict[Sampling, list[int]]:
    """The texts without faults."""

    async def attempt() -> dict[Sampling, list[int]]:
        rig = Rig(tiny_pair[0])
        await rig.start()
        texts = {sampling: (await ask(rig, sampling))[0] for sampling in (GREEDY, SAMPLED)}
        await rig.kill()
        return texts

    texts = asyncio.run(attempt())
    assert [len(text) for text in texts.values()] == [TOKENS] * 2
    return texts


@pytest.fixture(autouse=True)
def no_descriptor_is_left(ask: Ask) -> Iterator[None]:
    """Sockets, pipes and files of a test are closed at its end."""
    with no_descriptor_left():
        yield


def cuts(seed: int, count: int, kind: Kind = Kind.RESET) -> list[Fault]:
    """Faults anywhere from the first byte to the last ones of an answer."""
    rng = random.Random(seed)
    return [Fault(kind, rng.random() < 0.5, rng.randint(1, 700)) for _ in range(count)]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", range(5))
def test_a_link_cut_anywhere(
    tiny_pair: tuple[Path, Path],
    ask: Ask,
    plain: dict[Sampling, list[int]],
    sampling: Sampling,
    seed: int,
) -> None:
    """Five links in a row are cut at random bytes in both directions, the handshake's too."""

    async def attempt() -> tuple[list[int], int, int]:
        rig, proxy = Rig(tiny_pair[0]), Proxy(cuts(seed, 5))
        await rig.start()
        async with proxy.before("127.0.0.1", rig.port):
            text, _ = await ask(rig, sampling, proxy.address)
        await until(rig.holds_nothing)
        await rig.kill()
        return text, len(proxy.struck), proxy.connections

    text, struck, connections = asyncio.run(attempt())
    assert text == plain[sampling]
    assert connections - struck in (0, 1), "one more for each fault, unless it was the very end"
    assert struck >= 1, "no fault has struck: the test shows nothing"


@pytest.mark.parametrize(
    "shape",
    [Shape(piece_bytes=1), Shape(piece_bytes=5, delay_s=0.001), Shape(bytes_per_s=20_000)],
    ids=["slices", "late pieces", "throttled"],
)
def test_a_bad_link_that_holds(
    tiny_pair: tuple[Path, Path], ask: Ask, plain: dict[Sampling, list[int]], shape: Shape
) -> None:
    async def attempt() -> tuple[list[int], int]:
        rig = Rig(tiny_pair[0])
        await rig.start()
        async with Proxy(shape=shape).before("127.0.0.1", rig.port) as proxy:
            answer = await ask(rig, SAMPLED, proxy.address)
        await until(rig.holds_nothing)
        await rig.kill()
        return answer

    assert asyncio.run(attempt()) == (plain[SAMPLED], 1)


@pytest.mark.parametrize("up", [True, False])
def test_a_half_open_link_is_noticed(
    tiny_pair: tuple[Path, Path], ask: Ask, plain: dict[Sampling, list[int]], up: bool
) -> None:
    """Bytes vanish, and no end is told: only silence shows it."""

    async def attempt() -> tuple[list[int], int]:
        rig, proxy = Rig(tiny_pair[0]), Proxy([Fault(Kind.HALF_OPEN, up, 350)])
        await rig.start()
        async with proxy.before("127.0.0.1", rig.port):
            answer = await ask(rig, SAMPLED, proxy.address)
            assert len(proxy.struck) == 1
        await until(rig.holds_nothing)
        await rig.kill()
        return answer

    assert asyncio.run(attempt()) == (plain[SAMPLED], 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_server_killed_at_random_points(
    tiny_pair: tuple[Path, Path], ask: Ask, plain: dict[Sampling, list[int]], seed: int
) -> None:
    """Five servers in a row are killed in one answer, each with a cold cache after it."""

    async def attempt() -> tuple[list[int], int]:
        rig, deaths = Rig(tiny_pair[0]), list[asyncio.Task[None]]()
        await rig.start()

        async def die() -> None:
            await rig.kill()
            await rig.start()

        def strike(fault: Fault) -> None:
            deaths.append(asyncio.ensure_future(die()))

        proxy = Proxy(cuts(seed, 5, Kind.TELL), on_fault=strike)
        async with proxy.before("127.0.0.1", rig.port):
            text, _ = await ask(rig, SAMPLED, proxy.address)
            await asyncio.gather(*deaths)
        await until(rig.holds_nothing)
        await rig.kill()
        return text, len(deaths)

    text, deaths = asyncio.run(attempt())
    assert text == plain[SAMPLED]
    assert deaths >= 1


def test_a_flipped_bit_under_tls(
    tiny_pair: tuple[Path, Path], tmp_path: Path, ask: Ask, plain: dict[Sampling, list[int]]
) -> None:
    """TLS finds it out wherever it is; then it is a link that broke."""
    self_signed(tmp_path, "server")
    certificate = load_certificate(tmp_path / "server.pem", tmp_path / "server.key")
    credentials = Credentials(trust=trust(certificate.pin))
    rng = random.Random(3)
    faults = [Fault(Kind.FLIP, up, rng.randint(1, 2500)) for up in (True, False) * 3]

    async def attempt() -> tuple[list[int], int]:
        rig, proxy = Rig(tiny_pair[0], certificate), Proxy(faults)
        await rig.start()
        async with proxy.before("127.0.0.1", rig.port):
            text, _ = await ask(rig, SAMPLED, proxy.address, credentials=credentials)
        await until(rig.holds_nothing)
        await rig.kill()
        return text, len(proxy.struck)

    text, struck = asyncio.run(attempt())
    assert text == plain[SAMPLED]
    assert struck >= 1


def test_a_redirection_at_reconnect_leads_to_another_server(
    tiny_pair: tuple[Path, Path], ask: Ask, plain: dict[Sampling, list[int]]
) -> None:
    async def attempt() -> tuple[list[int], int]:
        first, second = Rig(tiny_pair[0]), Rig(tiny_pair[0])
        await first.start()
        await second.start()
        killing: list[asyncio.Task[None]] = []

        # the front sends edges to the first one, until it dies with the link to it
        def strike(fault: Fault) -> None:
            killing.append(asyncio.ensure_future(first.kill()))
            for replica, unready in zip(front.router.replicas, ["killed", ""], strict=True):
                replica.told(unready, 0)

        proxy = Proxy([Fault(Kind.TELL, False, 300)], on_fault=strike)
        async with proxy.before("127.0.0.1", first.port):
            replicas = f"127.0.0.1:{proxy.address[1]},127.0.0.1:{second.port}"
            front = Rig(tiny_pair[0], redirect=replicas)
            await front.start()
            front.router.replicas[1].told("as if it were being loaded", 0)
            answer = await ask(front, SAMPLED)
            await asyncio.gather(*killing)
        await front.kill()
        await second.kill()
        assert second.server.totals.tokens
        return answer

    assert asyncio.run(attempt()) == (plain[SAMPLED], 2)


def refusals(rig: Rig) -> float:
    """Requests that a server refused since it was draining."""
    count = rig.server.metrics.registry.get_sample_value
    return count("specedge:request_errors_total", {"code": "draining"}) or 0.0


def test_a_server_that_is_still_draining_is_asked_again(
    tiny_pair: tuple[Path, Path], ask: Ask, plain: dict[Sampling, list[int]]
) -> None:
    """A refusal that will pass ends a request that begins, and not one that goes on."""

    async def attempt() -> list[int]:
        rig = Rig(tiny_pair[0])
        await rig.start(unready="stopping")
        with pytest.raises(ServerError, match="stopping"):
            await ask(rig, SAMPLED)
        rig.server.edges.unready = ""

        async def drain() -> None:
            rig.server.edges.unready, before = "stopping", refusals(rig)
            await until(lambda: refusals(rig) >= before + 2)
            rig.server.edges.unready = ""

        draining: list[asyncio.Task[None]] = []
        proxy = Proxy(
            [Fault(Kind.RESET, True, 400)],
            on_fault=lambda fault: draining.append(asyncio.ensure_future(drain())),
        )
        async with proxy.before("127.0.0.1", rig.port):
            text, _ = await ask(rig, SAMPLED, proxy.address)
        await asyncio.gather(*draining)
        await rig.kill()
        return text

    assert asyncio.run(attempt()) == plain[SAMPLED]


@pytest.mark.parametrize(("reconnect_s", "says"), [(0.0, r"^[^()]+$"), (0.4, "given up after 0.4")])
def test_an_edge_gives_up_in_time(
    tiny_pair: tuple[Path, Path], ask: Ask, reconnect_s: float, says: str
) -> None:
    async def attempt() -> None:
        rig, killing = Rig(tiny_pair[0]), list[asyncio.Task[None]]()
        await rig.start()
        proxy = Proxy(
            [Fault(Kind.TELL, True, 400)],
            on_fault=lambda fault: killing.append(asyncio.ensure_future(rig.kill())),
        )
        async with proxy.before("127.0.0.1", rig.port):
            with pytest.raises(ServerError, match=says):
                await ask(rig, SAMPLED, proxy.address, reconnect_s)
            await asyncio.gather(*killing)
        assert proxy.connections == len(killing) == 1

    asyncio.run(attempt())


def test_processes_killed_for_real(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    """The link of an edge is cut, then the edge is killed, and another one ends the answer."""
    file = tmp_path / "answer.json"
    options = {"draft": str(tiny_pair[1]), "temperature": 1.0, "seed": 5, "max_tokens": 120}

    def edge(port: int, *more: str) -> subprocess.Popen[str]:
        options = ["--draft", str(tiny_pair[1]), "--temperature", "1", "--seed", "5"]
        options += ["--max-tokens", "120", "--server", f"127.0.0.1:{port}"]
        command = [sys.executable, "-m", "runtime.edge", *options, "--resume-file", str(file)]
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *more], stdout=pipe, stderr=pipe, text=True)

    async def attempt() -> tuple[str, str]:
        victim: subprocess.Popen[str] | None = None

        def kill(fault: Fault) -> None:
            if fault.kind is Kind.TELL:
                os.kill(victim.pid, signal.SIGKILL)

        # an edge comes once to see whether anybody listens, and once to stay
        faults = [None, Fault(Kind.RESET, True, 700), Fault(Kind.TELL, False, 300)]
        async with Proxy(faults, on_fault=kill).before(*parse_address(tiny_server)) as proxy:
            victim = edge(proxy.address[1], "--prompt", "Once upon a time")
            _, told = await asyncio.to_thread(victim.communicate)
            assert victim.returncode == -signal.SIGKILL, told
            assert file.stat().st_mode & 0o777 == 0o600
            heir = edge(proxy.address[1])
            text, _ = await asyncio.to_thread(heir.communicate)
        return told, text

    told, text = asyncio.run(attempt())
    assert "reconnecting…" in told
    with Edge(EdgeConfig(server=tiny_server, **options)) as whole:
        plain = whole.generate("Once upon a time", max_budget=0).text
    assert text == inert(plain) + "\n"
    assert not file.exists()
