"""The pages of a server process: while it loads, serves, drains, and where it may not listen."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest
import torch

from runtime.api.serving import serving
from runtime.config import ConfigError, ServerConfig, parse_address
from runtime.edge.net.link import Link, ServerError
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.server.door import Door, Identity
from runtime.server.http import application
from runtime.server.loop import Server
from runtime.server.metrics import Metrics
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.request import Request
from runtime.tree import OrderedTree
from runtime.wire import messages as wire
from tests.server.process import Process, samples, server_process
from tests.server.replica_pages import replica_pages

HELD = Identity("held", 260, lambda rows: bytes(16), 512, frozenset(), None)
TINY = ("--threads", "1", "--no-pipeline", "--credits", "open")


@pytest.fixture
def hello(tiny_pair: tuple[Path, Path]) -> wire.Hello:
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    return wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny")


def test_garbage_fills_no_log(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """At the port of edges and at that of the pages: a line a second, with a count."""
    options = ("--model", str(tiny_pair[0]), "--log-format", "json")

    def send(port: tuple[str, int]) -> None:
        with socket.create_connection(port) as peer:
            peer.sendall(b"\0garbage\r\n\r\n" + bytes(64))
            with contextlib.suppress(ConnectionResetError):
                while peer.recv(1024):
                    pass

    def told(event: str) -> list[int]:
        """How many each line of it stands for."""
        whole, _, _ = (tmp_path / "log").read_text().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line.get("others", 0) + 1 for line in lines if line["event"] == event]

    with server_process(tmp_path / "log", *TINY, *options) as server:
        pages = parse_address(server.url.removeprefix("http://"))
        for event, port in (
            ("Invalid HTTP request received.", pages),
            ("edge left", server.address),
        ):
            sent, begun_s = 150, time.monotonic()
            for _ in range(sent):
                send(port)
            before = told(event)
            while told(event) == before:
                send(port)
                sent += 1
            # the last of them may not have been read of yet
            assert sum(told(event)) in (sent - 1, sent)
            assert len(told(event)) <= time.monotonic() - begun_s + 1
        count = ("connection_errors_total", "protocol")
        assert server.samples_once(lambda found: found[count] == sent)[count] == sent


def test_a_loading_server_lives_but_is_not_ready(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The model's first file is a pipe, so loading lasts until the test writes it."""
    model = tmp_path / "slow-model"
    shutil.copytree(tiny_pair[0], model)
    config = model / "config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)
    with server_process(tmp_path / "log", *TINY, "--model", str(model)) as server:
        assert server.get("/health") == (200, "alive\n")
        assert server.get("/ready") == (503, "slow-model is being loaded\n")
        assert server.get("/metrics")[0] == 200
        with config.open("wb") as pipe:  # opens when the server reads it
            assert server.get("/health")[0] == 200
            (tmp_path / "config.json").write_bytes(content)
            (tmp_path / "config.json").replace(config)
            pipe.write(content)
        assert server.address
        assert server.get("/ready") == (200, "ready\n")
        assert server.get("/unknown")[0] == 404


def status_for(url: str, host: str) -> int:
    """Of /metrics, asked for under that name."""
    try:
        with urlopen(HttpRequest(f"{url}/metrics", headers={"Host": host}), timeout=60) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_a_page_with_a_name_pointed_at_this_machine_reads_nothing(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where others may come, under whatever name the network gives it, names tell nothing."""
    for address, others in (("127.0.0.1", 403), ("0.0.0.0", 200)):
        options = (*TINY, "--model", str(tiny_pair[0]), "--http", f"{address}:0")
        with server_process(tmp_path / address, *options) as server:
            for host in ("localhost:8402", "127.0.0.1", "[::1]:1"):
                assert status_for(server.url, host) == 200
            for host in (
                "rebound.example",
                "rebound.example:8402",
                "localhost.example",
                "10.0.0.1",
            ):
                assert status_for(server.url, host) == others


async def heard_by(link: Link) -> "asyncio.Queue[wire.Message]":
    """Everything that comes over a link from now on; it still comes to the link as well."""
    heard: asyncio.Queue[wire.Message] = asyncio.Queue()
    deliver = link._peer._on_message

    def listen(peer: object, message: wire.Message) -> None:
        heard.put_nowait(message)
        deliver(peer, message)

    link._peer._on_message = listen
    return heard


def test_a_draining_server_says_so_on_every_side(
    tiny_pair: tuple[Path, Path], tmp_path: Path, hello: wire.Hello
) -> None:
    async def scenario(server: Process) -> None:
        link = await Link.open(*server.address, hello)
        idle = await Link.open(*server.address, hello)
        running = link.request([1, 2, 3], Sampling(30))
        await running.verdict()
        heard = await heard_by(idle)
        server.process.send_signal(signal.SIGTERM)
        notice = await heard.get()
        assert notice == wire.Error(0, wire.ErrorCode.DRAINING, False, "the server is stopping")
        assert idle.alive
        assert await asyncio.to_thread(server.get, "/ready") == (503, "the server is stopping\n")
        assert (await asyncio.to_thread(server.get, "/health"))[0] == 200
        with pytest.raises(ServerError, match="the server is stopping"):
            await idle.request([1], Sampling(1)).verdict()
        page = await asyncio.to_thread(server.samples)
        assert page["request_errors_total", "draining"] == 1
        assert page["num_requests_running",] == 1
        tokens = 1
        while not running.finished:
            running.send(3 + tokens, OrderedTree())
            await running.verdict()
            tokens += 1
        assert tokens == 30

    with server_process(tmp_path / "log", *TINY, "--model", str(tiny_pair[0])) as server:
        asyncio.run(asyncio.wait_for(scenario(server), 120))
        assert server.process.wait(60) == 0


class HeldEngine:
    """A model whose pass takes until it is released, and then fails."""

    ranks = None

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        pages = iter(range(64))
        self.kv = SimpleNamespace(
            device=torch.device("cpu"),
            page_size=16,
            n_free=64,
            allocate=lambda n: [next(pages) for _ in range(n)],
            free=lambda pages: None,
        )

    def forward(self, requests: object) -> None:
        self.entered.set()
        assert self.release.wait(60), "nobody released the step"
        raise RuntimeError("a held step ends like this")


def test_a_scrape_does_not_wait_for_a_step() -> None:
    engine = HeldEngine()

    async def scenario() -> None:
        config = ServerConfig()
        server = Server(config, engine, Door(config, HELD))
        params = wire.Open(
            request=1, seed=0, temperature=0.0, top_p=1.0, min_p=0.0, top_k=0,
            max_tokens=5, prompt_tokens=3, stop_ids=(), max_nodes=4,
        )  # fmt: skip
        request = Request(("peer", 1), params, 8, [1, 2, 3], edge=EdgeProfile(max_nodes=4))
        server.pipeline.opened(request, 0.0)
        server.scheduler.submit(request)
        verifying = asyncio.ensure_future(server._verify_forever())
        server._work.set()
        pages = application(lambda: "", server.metrics.registry)
        async with serving("127.0.0.1:0", pages) as url:
            await asyncio.to_thread(engine.entered.wait, 60)
            page = await asyncio.to_thread(lambda: urlopen(f"{url}/metrics").read().decode())
            assert not server.totals.steps
        assert samples(page)["num_requests_running",] == 1
        assert samples(page)["verify_step_seconds_count",] == 0
        server.scheduler.remove(request)
        engine.release.set()
        while not server.totals.steps:
            await asyncio.sleep(0)
        verifying.cancel()
        server.steps.stop()
        assert server.metrics.registry.get_sample_value("specedge:verify_step_seconds_count") == 1

    asyncio.run(scenario())


def test_signals_stay_with_the_server_that_it_belongs_to() -> None:
    async def scenario() -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        pages = application(lambda: "", Metrics().registry)
        async with serving("127.0.0.1:0", pages) as url:
            await asyncio.to_thread(lambda: urlopen(f"{url}/health").read())
            assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    asyncio.run(scenario())


def test_a_redirecting_front_has_the_pages_of_its_door(tmp_path: Path) -> None:
    replicas = ["127.0.0.1:9", "127.0.0.1:10"]
    with replica_pages() as pages:
        options = ["--redirect", f"{replicas[0]}={pages.address},{replicas[1]}"]
        with server_process(tmp_path / "log", *options) as front:
            assert front.address
            assert front.get("/ready") == (200, "ready\n")
            page = front.samples()
            pages.unready = "draining"
            gone = front.samples_once(lambda now: not now["replica_ready", replicas[0]])
            status, reason = front.get("/ready")
    assert [page["replica_ready", name] for name in replicas] == [1, 0]
    assert [gone["replica_ready", name] for name in replicas] == [0, 0]
    assert (status, replicas[0] in reason, "503: draining" in reason) == (503, True, True)
    assert page["edges_connected",] == page["replica_edges", replicas[0]] == 0
    assert page["wire_bytes_total", "sent"] == 0
    assert ("num_requests_running",) not in page


def test_a_busy_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "runtime.server", "--port", "0", "--http", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"cannot listen on {address}" in done.stderr
    assert "give --http another address" in done.stderr


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(ConfigError, match="--http is '8402'; expected host:port"):
        ServerConfig(http="8402")
    ServerConfig(http="127.0.0.1:0")
    ServerConfig(http="")


@pytest.mark.parametrize(
    "accept",
    [
        # as Prometheus 2 and 3 ask, which would rather have OpenMetrics
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3",
        "application/openmetrics-text",
        "*/*",
        "",
    ],
)
def test_metrics_keep_the_names_of_the_dashboard_whatever_is_accepted(accept: str) -> None:
    """In OpenMetrics their colon would become an underscore, and no panel would show anything."""

    async def scenario() -> None:
        async with serving("127.0.0.1:0", application(lambda: "", Metrics().registry)) as url:
            ask = HttpRequest(f"{url}/metrics", headers={"Accept": accept})
            response = await asyncio.to_thread(urlopen, ask)
            page = response.read().decode()
            assert response.headers["Content-Type"].startswith("text/plain; version=")
        names = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line[0] != "#"}
        assert {"specedge:requests_total", "specedge:verify_step_seconds_count"} <= names
        assert not any(name.startswith("specedge_") for name in names)

    asyncio.run(scenario())
