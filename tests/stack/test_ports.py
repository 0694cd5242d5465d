"""Connections by the daemon: bytes in order, both ends, every module; and what goes wrong."""

import asyncio
import errno
import os
import random
import select
import shutil
import signal
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime.stack import ports
from runtime.stack.attachment import Event, to_bytes
from runtime.stack.transport import StackTransport
from runtime.wire import stacks
from runtime.wire.places import AddressAway
from runtime.wire.tls import load_certificate, trust
from tests.certificates import self_signed
from tests.faults.rig import no_descriptor_left, until
from tests.ports import reserved_port
from tests.stack.daemon import Daemon, _stack, daemon, start

HOST = "127.0.0.1"
MESSAGES = 64  # more than a daemon reads of one guest before it looks at its jobs
Guest, Kind = _stack.Guest, _stack.Kind


class Peer(asyncio.Protocol):
    """Keeps what comes; `answer` is asked for what to say to it."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda data: b"") -> None:
        self.got, self.ended, self.answer = bytearray(), False, answer
        self.gone: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.transport.write(self.answer(data))

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(error)


class Echo(Peer):
    def __init__(self) -> None:
        super().__init__(lambda data: data)

    def eof_received(self) -> bool:
        return False


async def pair(path: str) -> tuple[Peer, Peer, ports.Listener]:
    """Two ends of one connection."""
    made: list[Peer] = []

    def make() -> Peer:
        made.append(Peer())
        return made[0]

    listener = await ports.listen(path, HOST, 0, make)
    await listener.start_serving()
    edge = Peer()
    await ports.connect(path, *listener.sockets[0].getsockname(), edge)
    await until(lambda: bool(made))
    return edge, made[0], listener


def test_bytes_arrive_in_order_and_both_ends_part_well(by_each_module: Daemon) -> None:
    data = os.urandom(3_000_000)

    async def scenario() -> None:
        edge, server, listener = await pair(by_each_module.path)
        rng, left = random.Random(1), data
        while left:
            size = rng.choice((1, 100, 70_000, 300_000))
            edge.transport.write(left[:size])
            left = left[size:]
        server.transport.write(data)
        edge.transport.write_eof()
        await until(lambda: server.ended and len(edge.got) == len(data))
        server.transport.write(b"the last word")  # the other half is still open
        server.transport.close()
        await until(lambda: edge.ended)
        edge.transport.close()
        assert [await edge.gone, await server.gone] == [None, None]
        assert server.got == data
        assert edge.got == data + b"the last word"
        listener.close()
        await until(lambda: by_each_module.status()["guests"] == 0)

    with no_descriptor_left():
        asyncio.run(scenario())


def test_what_is_cut_is_told_to_the_other_end(by_each_module: Daemon) -> None:
    async def scenario() -> None:
        edge, server, listener = await pair(by_each_module.path)
        edge.transport.abort()
        edge.transport.abort()
        assert await edge.gone is None
        await until(lambda: server.ended or server.gone.done())
        server.transport.close()
        await server.gone
        listener.close()

    asyncio.run(scenario())


def test_what_nobody_will_read_keeps_no_connection(by_each_module: Daemon) -> None:
    """The other end has gone with megabytes still to be written to it."""

    async def scenario() -> None:
        edge, server, listener = await pair(by_each_module.path)
        server.transport.pause_reading()
        edge.transport.write(bytes(20_000_000))
        await until(lambda: by_each_module.status()["elements"] > 0)
        server.transport.abort()
        await until(lambda: edge.ended or edge.gone.done())
        edge.transport.close()
        await edge.gone
        listener.close()
        await until(lambda: by_each_module.status()["guests"] == 0)

    asyncio.run(scenario())


def test_an_abort_waits_for_no_daemon() -> None:
    async def scenario(running: Daemon) -> None:
        edge, server, listener = await pair(running.path)
        running.process.send_signal(signal.SIGSTOP)
        try:
            edge.transport.abort()
            assert await edge.gone is None
        finally:
            running.process.send_signal(signal.SIGCONT)
        await until(lambda: server.ended)
        server.transport.abort()
        listener.close()

    with daemon() as running:
        asyncio.run(scenario(running))


@pytest.mark.parametrize("module", ["shm", "tcp"])
def test_what_is_put_is_shown_with_the_next_flush(module: str) -> None:
    told: dict[Guest, list[Event]] = defaultdict(list)

    def wait_for(guest: Guest, kind: Kind) -> Event:
        while True:
            while told[guest]:
                if (event := told[guest].pop(0))[0] == kind:
                    return event
            select.select([guest.fileno()], [], [])
            told[guest] += guest.poll()

    with daemon("--module", module) as running:
        server, edge = _stack.Guest(running.path), _stack.Guest(running.path)
        listener = server.listen(to_bytes(HOST), 0, "")
        _, _, port = wait_for(server, Kind.LISTENING)
        server.accept(listener)
        slot = edge.connect(to_bytes(HOST), port, "")
        wait_for(server, Kind.ACCEPTED)
        wait_for(edge, Kind.CONNECTED)
        assert edge.put_frame(slot, b"one, ") == 5
        for _ in range(2):
            running.status()  # in that time a daemon that was shown it has passed it on
        assert not told[server] + server.poll()
        assert edge.put_frame(slot, b"two") == 3
        edge.flush()
        came = b""
        while len(came) < 8:
            came += wait_for(server, Kind.DATA)[2]
        assert came == b"one, two"
        edge.put_frame(slot, b"the last")
        edge.close(slot)  # shows it
        assert wait_for(server, Kind.DATA)[2] == b"the last"
        edge.detach()
        server.detach()


def test_many_connections_of_one_guest(by_each_module: Daemon) -> None:
    count = 150

    async def scenario() -> None:
        listener = await ports.listen(by_each_module.path, HOST, 0, Echo)
        await listener.start_serving()
        port = listener.sockets[0].getsockname()[1]
        edges = [Peer() for _ in range(count)]
        await asyncio.gather(
            *(ports.connect(by_each_module.path, HOST, port, edge) for edge in edges)
        )
        for number, edge in enumerate(edges):
            edge.transport.write(b"%d" % number)
        for number, edge in enumerate(edges):
            await until(lambda edge=edge, number=number: edge.got == b"%d" % number)
            edge.transport.close()
        await asyncio.gather(*(edge.gone for edge in edges))
        listener.close()

    asyncio.run(scenario())


def test_who_does_not_read_holds_up_itself_alone(by_each_module: Daemon) -> None:
    """What is on the way is bounded; a connection beside it goes on."""

    async def scenario() -> None:
        edge, server, listener = await pair(by_each_module.path)
        beside, other, _ = await pair(by_each_module.path)
        server.transport.pause_reading()
        edge.transport.write(bytes(20_000_000))
        beside.transport.write(bytes(1_000_000))
        await until(lambda: len(other.got) == 1_000_000)
        assert by_each_module.status()["held_bytes"] < 1 << 20
        assert edge.transport.get_write_buffer_size() > 10_000_000
        server.transport.resume_reading()
        await until(lambda: len(server.got) == 20_000_000)
        for peer in (edge, server, beside, other):
            peer.transport.abort()
        listener.close()

    asyncio.run(scenario())


def test_guests_of_one_host_share_a_memory_and_others_do_not() -> None:
    async def scenario(path: str) -> None:
        for module, is_direct in (("shm", True), ("unix", False), ("tcp", False)):
            from runtime.stack import _stack

            _stack.move(path, module)
            edge, server, listener = await pair(path)
            assert edge.transport.get_extra_info("is_direct") is is_direct
            assert server.transport.get_extra_info("peername")[0] == HOST
            edge.transport.abort()
            server.transport.abort()
            listener.close()

    with daemon() as running:
        asyncio.run(scenario(running.path))


def test_a_plain_socket_reaches_a_port_of_the_daemon() -> None:
    async def scenario(path: str) -> None:
        listener = await ports.listen(path, HOST, 0, Echo)
        await listener.start_serving()
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        writer.write(b"from elsewhere")
        assert await reader.readexactly(14) == b"from elsewhere"
        writer.close()
        listener.close()

    with daemon() as running:
        asyncio.run(scenario(running.path))


def test_a_move_ends_connections_and_the_next_go_by_the_new_module() -> None:
    from runtime.stack import _stack

    async def scenario(path: str) -> None:
        edge, server, listener = await pair(path)
        _stack.move(path, "tcp")
        assert "moved to another stack" in str(await edge.gone)
        await until(lambda: server.ended)
        again = Peer()
        made = await ports.connect(path, *listener.sockets[0].getsockname(), again)
        assert not made.get_extra_info("is_direct")
        again.transport.abort()
        listener.close()

    with daemon() as running:
        asyncio.run(scenario(running.path))


def test_a_daemon_that_comes_back_gives_the_same_port_again() -> None:
    async def scenario(running: Daemon) -> Daemon:
        edge, server, listener = await pair(running.path)
        port = listener.sockets[0].getsockname()
        running.process.kill()
        assert "has gone" in str(await edge.gone)
        assert "has gone" in str(await server.gone)
        again = start(running.path)
        edge = Peer()

        async def reach() -> None:
            while True:
                try:
                    await ports.connect(running.path, *port, edge)
                    return
                except OSError:
                    await asyncio.sleep(0.05)

        await asyncio.wait_for(reach(), 30)
        edge.transport.abort()
        await edge.gone
        listener.close()
        return again

    with daemon() as running:
        again = asyncio.run(scenario(running))
        running.process.wait()
        running.process = again.process


@pytest.mark.parametrize("what", ["file", "socket", "left", "too long"])
def test_a_port_whose_unix_socket_cannot_be_is_reached_by_tcp(what: str) -> None:
    """Where its name is somebody else's, which stays there, or too long."""
    folder = Path(tempfile.mkdtemp())
    path = str(folder / "s").ljust(106 if what == "too long" else 0, "s")

    async def scenario() -> None:
        reserved = await ports.listen(path, HOST, 0, Echo)
        address = reserved.sockets[0].getsockname()
        name = f"{path}.{address[1]}"
        with socket.socket(socket.AF_UNIX) as other:
            if what == "file":
                Path(name).write_text("precious")
            elif what != "too long":
                other.bind(name)
            if what == "left":
                other.close()
            await reserved.start_serving()
            edge = Peer()
            await ports.connect(path, *address, edge)
            edge.transport.write(b"to the daemon's port")
            await until(lambda: edge.got == b"to the daemon's port")
            edge.transport.abort()
        reserved.close()
        await until(lambda: Path(name).exists() == (what in ("file", "socket")))
        assert what != "file" or Path(name).read_text() == "precious"

    running = start(path, "--module", "unix")
    try:
        asyncio.run(scenario())
    finally:
        running.process.kill()
        running.process.communicate()
        shutil.rmtree(folder)


@pytest.mark.parametrize("module", ["shm", "tcp"])
def test_what_keeps_a_connection_from_coming_about_is_a_sentence(module: str) -> None:
    async def told(attempt: object) -> str:
        with pytest.raises(ConnectionError) as raised:
            await attempt
        return str(raised.value)

    def nobody(*_: object) -> None: ...

    async def scenario(path: str) -> None:
        with reserved_port() as port:
            sentence = await told(stacks.connect(path, HOST, port, nobody, nobody))
            assert sentence == f"cannot connect to {HOST}:{port}: nothing listens there"
            sentence = await told(stacks.listen(path, HOST, port, Echo))
            assert sentence == f"cannot listen on {HOST}:{port}: another program has this port"
        reserved = await stacks.listen(path, HOST, 0, Echo)  # and not open
        port = reserved.sockets[0].getsockname()[1]
        assert "nothing listens" in await told(stacks.connect(path, HOST, port, nobody, nobody))
        reserved.close()
        assert "no specedge-stack at --stack /nowhere: No such file" in await told(
            stacks.connect("/nowhere", HOST, port, nobody, nobody)
        )
        for stack, host, sentence in (
            ("/nowhere", HOST, "no specedge-stack at --stack /nowhere: No such file"),
            (path, "192.0.2.1", "cannot listen on 192.0.2.1:0: this machine does not have this"),
        ):
            with pytest.raises(AddressAway, match=sentence):  # it may come
                await stacks.listen(stack, host, 0, Echo)

    with daemon("--module", module) as running:
        asyncio.run(scenario(running.path))


def test_terms_of_tls_are_heard_before_the_job_that_needs_them(tmp_path) -> None:
    """They go by a guest's socket, which the daemon reads in turns, and jobs by its memory."""
    self_signed(tmp_path, "own")
    known = trust(load_certificate(tmp_path / "own.pem", tmp_path / "own.key").pin)
    assert known is not None
    with daemon() as running, reserved_port() as closed:
        guest = _stack.Guest(running.path)
        running.process.send_signal(signal.SIGSTOP)
        for _ in range(MESSAGES):
            guest.renew(1, "")  # of another slot
        guest.connect(to_bytes(HOST), closed, known.terms("localhost"))
        guest.flush()
        running.process.send_signal(signal.SIGCONT)
        events: list[Event] = []
        while not events:
            select.select([guest.fileno()], [], [])
            events += guest.poll()
        [(kind, _, status)] = events
        assert kind == Kind.CLOSED
        assert status == errno.ECONNREFUSED, "not its terms"


def test_tls_ends_in_the_daemon(tmp_path, by_each_module: Daemon) -> None:
    """By pin, by authority, wrong, missing on either side, and with a new certificate."""
    for name in ("old", "new"):
        self_signed(tmp_path, name)
    old, new = (
        load_certificate(tmp_path / f"{n}.pem", tmp_path / f"{n}.key") for n in ("old", "new")
    )
    path = by_each_module.path

    async def connect(port: int, option: str) -> StackTransport:
        known = trust(option)
        terms = known.terms("localhost") if known else ""
        return await ports.connect(path, HOST, port, Peer(), terms)

    async def scenario() -> None:
        listener = await ports.listen(path, HOST, 0, Echo, old.terms)
        await listener.start_serving()
        port = listener.sockets[0].getsockname()[1]
        for option in (old.pin, str(tmp_path / "old.pem")):
            made = await connect(port, option)
            assert made.get_extra_info("certificate") == old.hash
            peer = made.get_protocol()
            peer.transport.write(bytes(200_000))
            await until(lambda peer=peer: len(peer.got) == 200_000)
            made.close()
        for option in (str(tmp_path / "new.pem"), "system"):
            with pytest.raises(ConnectionError, match="not trusted"):
                await connect(port, option)
        listener.renew(new.terms)
        made = await connect(port, str(tmp_path / "new.pem"))
        assert made.get_extra_info("certificate") == new.hash
        made.abort()
        listener.close()
        plain = await ports.listen(path, HOST, 0, lambda: Peer(lambda data: b"no TLS here\r\n"))
        await plain.start_serving()
        with pytest.raises(ConnectionError, match="speaks no TLS"):
            await connect(plain.sockets[0].getsockname()[1], old.pin)
        plain.close()
        with pytest.raises(ConnectionError, match="certificate, key or authority"):
            await ports.listen(path, HOST, 0, Echo, "server\nnonsense")

    asyncio.run(scenario())


def test_several_guests_are_heard_together_where_that_is_asked_for() -> None:
    """Of what they ask in so many rounds, by the switches of a daemon that may look every 5 ms."""
    rounds, guests, every_s = 40, 8, 0.005
    with socket.create_server((HOST, 0)) as server, ExitStack() as stack:
        running = stack.enter_context(daemon("--coalesce-us", f"{every_s * 1e6:.0f}"))
        asking = [Guest(running.path) for _ in range(guests)]
        slots = [guest.connect(to_bytes(HOST), server.getsockname()[1], "") for guest in asking]
        answering = [stack.enter_context(server.accept()[0]) for _ in range(guests)]
        before, began_s = switches(running), time.monotonic()
        for n in range(rounds):
            for guest, slot in zip(asking, slots, strict=True):
                while guest.send_frame(slot, bytes([n])) != 1:
                    guest.poll()  # it does not know yet that it is connected
            assert [one.recv(2) for one in answering] == [bytes([n])] * guests
        took_s, after = time.monotonic() - began_s, switches(running)
    # It sleeps for a bell and then for the others; a guest heard last and first again is alone.
    assert after - before < 2 * took_s / every_s + 2 * rounds


def switches(running: Daemon) -> int:
    """How often it has slept."""
    status = Path(f"/proc/{running.process.pid}/status").read_text(encoding="utf-8")
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
