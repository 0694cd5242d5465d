"""Where a port is opened, whom it reaches, and what ends that do not fit say of each other."""

import asyncio
import socket
from pathlib import Path

import pytest

from runtime.wire.connection import Role
from runtime.wire.places import AddressAway, connect, listen, open_port
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import load_certificate, trust
from tests.certificates import self_signed
from tests.wire.cases import HELLO

HAS_IPV6 = socket.has_dualstack_ipv6()


def nobody(*_):
    pass


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_of_two_that_reserved_a_port_one_has_it_and_the_other_a_sentence():
    """Two servers that are started at once both load their models first."""

    async def scenario():
        first = await listen("127.0.0.1", 0, asyncio.Protocol, start=False)
        port = first.sockets[0].getsockname()[1]
        try:
            second = await listen("127.0.0.1", port, asyncio.Protocol, start=False)
        except ConnectionError:
            pytest.skip("here a port can be reserved by one alone")
        await open_port(first)
        said = f"cannot listen on 127.0.0.1:{port}: another program has this port"
        with pytest.raises(ConnectionError) as told:
            await open_port(second)
        assert str(told.value) == said
        first.close()
        second.close()

    run(scenario())


@pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here")
@pytest.mark.parametrize("start", [True, False])
def test_a_server_on_all_ipv6_addresses_takes_edges_of_both_families(start):
    async def scenario():
        arrived = asyncio.Queue()

        def make():
            return FramedProtocol(Role.SERVER, lambda peer, _: arrived.put_nowait(peer), nobody)

        listener = await listen("::", 0, make, start)
        port = listener.sockets[0].getsockname()[1]
        if not start:
            with pytest.raises(ConnectionError, match="nothing listens there"):
                await connect("127.0.0.1", port, nobody, nobody)
            await listener.start_serving()
        for host, shown in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            edge = await connect(host, port, nobody, nobody)
            edge.send(HELLO)
            peer = await arrived.get()
            assert peer.host == host
            assert peer.peer_name.rpartition(":")[0] == shown
            assert edge.peer_name == f"{shown}:{port}"
            edge.close()
        with pytest.raises(ConnectionError, match=rf"cannot listen on \[::\]:{port}"):
            await listen("::", port, make)
        listener.close()

    run(scenario())


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("192.0.2.1", "192.0.2.1:9"),
        pytest.param(
            "2001:db8::1",
            "[2001:db8::1]:9",
            marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6 here"),
        ),
    ],
)
def test_an_address_that_is_not_up_yet_is_told_from_one_that_never_works(host, shown):
    async def scenario():
        with pytest.raises(AddressAway) as told:
            await listen(host, 9, lambda: None)
        expected = f"cannot listen on {shown}: this machine does not have this address"
        assert str(told.value) == expected
        with pytest.raises(ConnectionError) as other:
            await listen("no such host", 9, lambda: None)
        assert not isinstance(other.value, AddressAway)

    run(scenario())


@pytest.mark.parametrize(
    ("server_has_tls", "edge_has_tls", "edge_hears", "server_hears"),
    [
        (
            True,
            False,
            "the server hung up without a word; if it has a certificate, give --tls",
            "the edge speaks no TLS: it needs --tls",
        ),
        (
            False,
            True,
            "the server speaks no TLS: leave --tls out, or ask its operator for a certificate",
            "the edge speaks TLS, and this server has no --tls-certificate",
        ),
    ],
)
def test_an_end_with_tls_and_one_without_name_what_is_wrong(
    tmp_path: Path, server_has_tls, edge_has_tls, edge_hears, server_hears
):
    self_signed(tmp_path, "server")
    told = []
    certificate = load_certificate(tmp_path / "server.pem", tmp_path / "server.key", told.append)

    async def scenario():
        gone, heard = asyncio.get_running_loop().create_future(), asyncio.Event()

        def closed(peer, reason):
            told.append(reason)
            heard.set()

        def make():
            return FramedProtocol(Role.SERVER, nobody, closed)

        context = certificate.context if server_has_tls else None
        listener = await listen("127.0.0.1", 0, make, tls=context)
        port = listener.sockets[0].getsockname()[1]
        context = trust(certificate.pin).context if edge_has_tls else None
        why = f"cannot connect to 127.0.0.1:{port}: " if edge_has_tls else ""
        try:
            edge = await connect(
                "127.0.0.1", port, nobody, lambda peer, reason: gone.set_result(reason), tls=context
            )
            edge.send(HELLO)
            reason = await gone
        except ConnectionError as error:
            reason = str(error)
            await heard.wait()
        assert reason == why + edge_hears
        assert told == [server_hears]
        listener.close()

    run(scenario())


def test_an_edge_that_gets_an_alert_of_tls_says_what_to_give():
    async def scenario():
        async def alert(reader, writer):
            await reader.read(10)
            writer.write(b"\x15\x03\x01\x00\x02\x02\x46")
            await reader.read()
            writer.close()

        gone = asyncio.get_running_loop().create_future()
        async with await asyncio.start_server(alert, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            edge = await connect("127.0.0.1", port, nobody, lambda _, why: gone.set_result(why))
            edge.send(HELLO)
            assert await gone == "the server speaks TLS: give --tls"

    run(scenario())
