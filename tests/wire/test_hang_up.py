"""The end of a connection whose peer is slow: nothing sent is lost, or it is said what is."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager

import pytest

from runtime.wire import tcp
from runtime.wire.connection import Connection, Role
from runtime.wire.messages import Error, ErrorCode, Ping
from runtime.wire.places import listen
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import Trust, load_certificate, trust
from tests.certificates import self_signed
from tests.wire.cases import HELLO, WELCOME

NOTICE = Error(0, ErrorCode.DRAINING, False, "x" * 400)
NOTICES = 120  # 50 kB: more than small buffers of both ends, less than a slow edge may have


@pytest.fixture(scope="module", params=["plain", "tls"])
def encryption(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ssl.SSLContext | None, Trust | None]:
    if request.param == "plain":
        return None, None
    folder = tmp_path_factory.mktemp("certificate")
    self_signed(folder, "server")
    certificate = load_certificate(folder / "server.pem", folder / "server.key")
    return certificate.context, trust(certificate.pin)


class Edge:
    """Reads its stream by hand, through a small buffer, and only when it is told to."""

    def __init__(self, port: int, known: Trust | None) -> None:
        self.connection = Connection(Role.EDGE)
        self.link = socket.socket()
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.link.settimeout(60)
        self.link.connect(("127.0.0.1", port))
        if known is not None:
            self.link = known.context.wrap_socket(self.link, server_hostname="localhost")

    def greet(self) -> None:
        self.link.sendall(self.connection.send(HELLO))
        assert self.connection.receive(self.link.recv(4096)) == [WELCOME]

    def notices(self) -> int:
        """Read to the end; how many there were."""
        count = 0
        while data := self.link.recv(500):
            count += len(self.connection.receive(data))
        return count


@asynccontextmanager
async def pair(encryption):
    """The server's end of a connection, its edge, and why it was closed, in the end."""
    context, known = encryption
    greeted = asyncio.get_running_loop().create_future()
    closed = asyncio.get_running_loop().create_future()

    def greet(peer, message):
        peer.send(WELCOME)
        link = peer._transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        greeted.set_result(peer)

    def make():
        return FramedProtocol(Role.SERVER, greet, lambda peer, reason: closed.set_result(reason))

    listener = await listen("127.0.0.1", 0, make, tls=context)
    edge = await asyncio.to_thread(Edge, listener.sockets[0].getsockname()[1], known)
    await asyncio.to_thread(edge.greet)
    yield await greeted, edge, closed
    edge.link.close()
    listener.close()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_a_slow_reader_gets_all_that_was_sent(encryption):
    async def scenario():
        async with pair(encryption) as (peer, edge, _):
            for _ in range(NOTICES):
                peer.send(NOTICE)
            assert peer._unsent_bytes > 20_000
            hanging_up = asyncio.ensure_future(peer.hang_up(60.0))
            assert await asyncio.to_thread(edge.notices) == NOTICES
            edge.link.close()
            await hanging_up
            assert peer.cut_bytes == 0

    run(scenario())


def test_who_reads_nothing_is_cut_and_it_is_said_how_much(encryption):
    async def scenario():
        async with pair(encryption) as (peer, _, closed):
            for _ in range(NOTICES):
                peer.send(NOTICE)
            await peer.hang_up(0.05)
            assert 20_000 < peer.cut_bytes < NOTICES * 450
            left = f"the last {peer.cut_bytes} bytes"
            assert await closed == f"the peer did not take {left} within 0.05 s"

    run(scenario())


def test_an_idle_peer_that_does_not_hang_up_is_not_waited_for(encryption, monkeypatch):
    monkeypatch.setattr(tcp, "CLOSE_TIMEOUT_S", 0.05)

    async def scenario():
        async with pair(encryption) as (peer, _, _):
            await peer.hang_up(3600.0)
            assert peer.cut_bytes == 0
            assert peer.is_closing
            peer.send(NOTICE)
            await peer.hang_up(1.0)  # it has gone already

    run(scenario())


def test_what_a_peer_says_to_the_end_of_an_answer_resets_nothing(encryption):
    async def scenario():
        async with pair(encryption) as (peer, edge, _):
            peer.send(NOTICE)
            hanging_up = asyncio.ensure_future(peer.hang_up(60.0))
            while not peer.is_closing:
                await asyncio.sleep(0)
            peer.send(NOTICE)  # too late
            edge.link.sendall(edge.connection.send(Ping(1)))
            assert await asyncio.to_thread(edge.notices) == 1
            edge.link.close()
            await hanging_up

    run(scenario())
