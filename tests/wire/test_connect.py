"""Stages of connecting that fail: the name, the address, TLS, the handshake; each is named."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from runtime.wire.places import connect
from runtime.wire.tls import trust
from tests.ports import reserved_port


def nobody(*_: object) -> None:
    pass


@pytest.fixture
def beside() -> Iterator[socket.socket]:
    """Has the black hole's port at 127.0.0.1, and does not listen yet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.fixture
def black_hole(beside: socket.socket) -> Iterator[tuple[str, int]]:
    """An address that drops packets: its queue of connections is full."""
    with ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.2", beside.getsockname()[1]))
        hole.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        yield hole.getsockname()


def name_server(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """One that knows these addresses for every name."""

    def answer(host: str, port: int, *_: object, **options: object) -> list[tuple[object, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def test_an_address_that_drops_packets_does_not_hide_the_next(
    monkeypatch: pytest.MonkeyPatch, black_hole: tuple[str, int], beside: socket.socket
) -> None:
    async def scenario() -> None:
        greeted = asyncio.Event()

        def greet(reader: object, writer: asyncio.StreamWriter) -> None:
            greeted.set()
            writer.close()

        port = black_hole[1]
        async with await asyncio.start_server(greet, sock=beside):
            name_server(monkeypatch, black_hole[0], "127.0.0.1")
            edge = await connect("server.example", port, nobody, nobody, timeout_s=60)
            await greeted.wait()
            edge.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def failure(host: str, port: int, **options: object) -> str:
    async def scenario() -> None:
        await connect(host, port, nobody, nobody, **options)

    with pytest.raises(ConnectionError) as told:
        asyncio.run(scenario())
    return str(told.value).removeprefix(f"cannot connect to {host}:{port}: ")


def test_an_address_that_does_not_answer(black_hole: tuple[str, int]) -> None:
    assert failure(*black_hole, timeout_s=0.1) == "no answer within 0.1 s"


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait() and [])

    async def scenario() -> None:
        try:
            await connect("a.example", 9, nobody, nobody, timeout_s=0.1)
        finally:
            over.set()  # else the loop would wait for its thread

    with pytest.raises(ConnectionError, match="no name server knew the host within"):
        asyncio.run(scenario())


def test_no_name_server_is_blamed_for_an_address(black_hole: tuple[str, int]) -> None:
    """However busy the threads are in which names are looked up."""

    async def scenario() -> str:
        over = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, over.wait)
        try:
            with pytest.raises(ConnectionError) as told:
                await connect(*black_hole, nobody, nobody, timeout_s=0.1)
        finally:
            over.set()
            await busy
        return str(told.value)

    assert asyncio.run(scenario()).endswith(": no answer within 0.1 s")


def test_tls_that_is_not_answered() -> None:
    """As where a tunnel drops large packets."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        known = trust("sha256:" + "0" * 64)
        address = silent.getsockname()
        assert known is not None
        sentence = failure(*address, timeout_s=1.0, tls=known.context)
    assert sentence.startswith("no TLS handshake in time; if a tunnel is on the way, its MTU may")


def test_nobody_at_any_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name_server(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3")
    with reserved_port() as port:
        assert failure("a.example", port) == "nothing listens there"
