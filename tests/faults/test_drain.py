"""SIGTERM while an edge is behind with reading: it gets all, or it is said what it did not."""

import asyncio
import logging
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from runtime.edge.net.asking import opening
from runtime.sampling import Sampling
from runtime.wire.connection import Connection, Role
from runtime.wire.messages import Prompt, Welcome
from tests.certificates import self_signed
from tests.faults.rig import Rig, until
from tests.processes import Child
from tests.server.process import server_process

TOKENS = 450


def server(model: Path, *more: str) -> Child:
    options = ["--model", str(model), "--port", "0", "--http", "", "--threads", "1"]
    return Child("runtime.server", *options, "--kv-tokens", "2048", "--drain-s", "60", *more)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_an_edge_that_reads_only_after_the_server_has_ended_gets_the_whole_answer(
    tiny_pair: tuple[Path, Path], tmp_path: Path, encrypted: bool
) -> None:
    options: tuple[str, ...] = ()
    if encrypted:
        self_signed(tmp_path, "server")
        options = ("--tls-certificate", str(tmp_path / "server.pem"))
        options += ("--tls-key", str(tmp_path / "server.key"))
    victim = server(tiny_pair[0], *options)
    words = asyncio.run(victim.line_with("--server")).split()
    config = EdgeConfig(
        server=words[words.index("--server") + 1],
        tls=words[words.index("--tls") + 1] if encrypted else "",
        draft=str(tiny_pair[1]),
        max_tokens=TOKENS,
        max_budget=0,  # the server decodes without waiting for this edge
        reconnect_s=0.0,
    )
    with Edge(config) as edge:
        answer = edge.generate("Once upon a time")
        pieces = iter(answer)
        next(pieces)
        os.kill(victim.pid, signal.SIGTERM)
        victim.wait()
        for _ in pieces:
            pass
        assert len(answer.tokens) == TOKENS
    assert asyncio.run(victim.end())[1] == 0


def test_what_an_edge_does_not_take_in_time_is_cut_and_said(
    tiny_pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        rig, edge = Rig(tiny_pair[0], drain_s=0.0), Connection(Role.EDGE)
        await rig.start()
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect(("127.0.0.1", rig.port))
            link.sendall(edge.send(rig.hello))
            (welcome,) = edge.receive(await asyncio.to_thread(link.recv, 4096))
            assert isinstance(welcome, Welcome)
            (peer,) = rig.server.door.peers()
            sender = peer._transport.get_extra_info("socket")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            link.sendall(edge.send(opening(Sampling(900), 1, 3, 0)))
            link.sendall(edge.send(Prompt(1, (1, 2, 3))))
            await until(lambda: peer.bytes_sent > 24_000)
            await until(rig.holds_nothing)
            await rig.drain()
        assert peer.cut_bytes > 4096
        told = f"the peer did not take the last {peer.cut_bytes} bytes within 1 s"
        (record,) = [record for record in caplog.records if record.getMessage() == "edge left"]
        assert record.levelno == logging.WARNING
        assert record.fields["reason"] == told

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_answer_that_a_drain_cuts_goes_on_at_another_replica(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Both edges are sent to their user's replica; it is stopped in the middle of an answer."""
    model = ("--model", str(tiny_pair[0]), "--kv-tokens", "2048", "--threads", "1")
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(
                server_process(tmp_path / f"replica{number}.log", *model, "--drain-s", "0")
            )
            for number in range(2)
        ]
        of = {"{}:{}".format(*replica.address): replica for replica in replicas}
        pages = (f"{name}={replica.url.removeprefix('http://')}" for name, replica in of.items())
        front = stack.enter_context(
            server_process(tmp_path / "front.log", "--redirect", ",".join(pages))
        )
        address = "{}:{}".format(*front.address)
        asked = {"draft": "none", "tokenizer": str(tiny_pair[0]), "max_tokens": TOKENS}
        config = EdgeConfig(server=address, max_budget=0, **asked)
        with Edge(config) as edge:
            whole = edge.generate("Once upon a time", seed=3, temperature=1.0)
            expected = whole.text
            (home,) = (one for one in replicas if one.samples()["prompt_tokens_total",])
            answer = edge.generate("Once upon a time", seed=3, temperature=1.0)
            pieces = iter(answer)
            text = next(pieces)
            home.process.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert home.process.wait() == 0
        assert text == expected
        assert answer.tokens == whole.tokens
        assert answer.statistics.reconnects >= 1
