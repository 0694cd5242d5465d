"""Edges that connect and do nothing: so many and no more, and the pages answer all the while."""

import asyncio
import socket
from pathlib import Path

import pytest

from runtime.edge.net.link import Credentials, Link, ServerError
from runtime.model.tokenizer import Tokenizer
from runtime.server.descriptors import KEPT
from runtime.server.users import add_user
from runtime.wire import messages as wire
from runtime.wire.connection import Connection, Role
from tests.faults.rig import Rig, until
from tests.server.process import server_process

DESCRIPTORS, EDGES = 256, 1000


def answered(address: tuple[str, int], hello: wire.Hello) -> tuple[socket.socket, wire.Message]:
    """A connection that has greeted, and what the server said."""
    link, edge = socket.create_connection(address), Connection(Role.EDGE)
    link.sendall(edge.send(hello))
    while not (messages := edge.receive(link.recv(4096))):
        pass
    return link, messages[0]


def test_a_thousand_idle_edges_leave_the_pages_and_are_told_busy(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(str(tiny_pair[0]))
    hello = wire.Hello(1, tokenizer.vocabulary_size, tokenizer.vocabulary_hash(), "tiny")
    options = ["--model", str(tiny_pair[0]), "--threads", "1"]
    with server_process(tmp_path / "log", *options, descriptors=DESCRIPTORS) as server:
        idle, refusals = [], set()
        for number in range(EDGES):
            link, answer = answered(server.address, hello)
            if isinstance(answer, wire.Welcome):
                idle.append(link)
            else:
                refusals.add((answer.code, answer.sentence))
                link.close()
            if number % 100 == 0:
                assert server.get("/health") == (200, "alive\n")
        assert len(idle) == DESCRIPTORS - KEPT
        sentence = f"{len(idle)} edges are connected, as many as this server takes; "
        assert refusals == {(wire.ErrorCode.BUSY, sentence + "try again in a while")}
        assert [server.get(page)[0] for page in ("/health", "/ready", "/metrics")] == [200] * 3
        for link in idle:
            link.close()
        now = server.samples_once(lambda now: now["edges_connected",] == 0)
        assert now["edges_connected",] == 0
        link, answer = answered(server.address, hello)
        assert isinstance(answer, wire.Welcome)
        link.close()
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_one_user_has_so_many_edges_and_the_others_are_let_in(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    users = tmp_path / "users.toml"
    tokens = {name: add_user(users, name).encode() for name in ("alice", "bob")}

    async def scenario() -> None:
        rig = Rig(tiny_pair[0], users=str(users), max_user_connections=2, max_connections=3)
        await rig.start()

        async def connect(name: str) -> Link:
            hello = wire.Hello(1, rig.hello.vocabulary_size, rig.hello.vocabulary_hash, "t", name)
            return await Link.open("127.0.0.1", rig.port, hello, Credentials(tokens[name]))

        links = [await connect("alice") for _ in range(2)]
        with pytest.raises(ServerError, match="2 edges of user 'alice' are connected") as refused:
            await connect("alice")
        assert refused.value.code is wire.ErrorCode.BUSY
        links.append(await connect("bob"))
        with pytest.raises(ServerError, match="3 edges are connected, as many as") as refused:
            await connect("bob")
        assert refused.value.code is wire.ErrorCode.BUSY
        await links.pop(0).close()
        await until(lambda: len(rig.server.door.admitted) == 2)
        links.append(await connect("alice"))
        for link in links:
            await link.close()
        await until(lambda: not rig.server.door._connections)
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))
