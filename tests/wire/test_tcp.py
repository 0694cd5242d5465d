"""Real sockets on the loopback interface: good peers, broken ones, slow ones, silent ones."""

import asyncio
import contextlib
import socket

import pytest

from runtime.wire.connection import Connection, ConnectionState, RequestState, Role
from runtime.wire.frames import HEADER, decode_body, decode_header, encode_frame
from runtime.wire.messages import (
    Close,
    Draft,
    Error,
    ErrorCode,
    Finish,
    Hello,
    Open,
    Ping,
    Pong,
    Prompt,
    Redirect,
    Turn,
    Verdict,
    Welcome,
)
from runtime.wire.places import connect, listen
from runtime.wire.tcp import MAX_WRITE_BUFFER_BYTES, MOST_UNWRITTEN_BYTES, FramedProtocol
from tests.ports import reserved_port
from tests.wire.cases import HELLO, REDIRECT, VOCABULARY, WELCOME, draft, opening

PATIENCE_S = 60


class Server:
    """Welcomes everybody, accepts all of every tree, and ends each request with round 3."""

    def __init__(self, welcome=WELCOME, handshake_timeout_s=5.0):
        self.welcome = welcome
        self.handshake_timeout_s = handshake_timeout_s
        self.peers, self.reasons, self.cancelled = [], [], []
        self.arrivals = asyncio.Queue()
        self.someone_left = asyncio.Event()

    async def __aenter__(self):
        self.listener = await listen("127.0.0.1", 0, self.make_protocol)
        self.port = self.listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception):
        self.listener.close()
        for peer in self.peers:
            peer.close()

    def make_protocol(self):
        timeout_s = self.handshake_timeout_s
        return FramedProtocol(Role.SERVER, self.on_message, self.on_closed, timeout_s)

    def on_message(self, peer, message):
        match message:
            case Hello():
                self.peers.append(peer)
                self.arrivals.put_nowait(peer)
                if self.welcome is not None:
                    peer.send(self.welcome)
            case Open(request, prompt_tokens=100):
                peer.send(Error(request, ErrorCode.LIMIT, False, "100 tokens are too many"))
            case Prompt(request) if (
                peer.connection.request_state(request) is RequestState.VERIFYING
            ):
                peer.send(Verdict(request, 0, 0, 1, Finish.NONE, 0, 0, Turn.EDGE, 64))
            case Draft(request, round, tokens=tokens):
                finish = Finish.STOP if round == 3 else Finish.NONE
                grant = (Turn.SERVER,) if finish else (Turn.EDGE, 64)
                peer.send(Verdict(request, round, len(tokens), round, finish, 0, 0, *grant))
            case Close(request):
                self.cancelled.append(request)

    def on_closed(self, peer, reason):
        self.reasons.append(reason)
        self.someone_left.set()


class Edge:
    """Collects what comes; `until` waits for a message of a kind."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.reasons = []
        self.closed = asyncio.Event()

    async def greet(self, port):
        self.peer = await connect("127.0.0.1", port, self.on_message, self.on_closed)
        self.peer.send(HELLO)
        assert await self.until(Welcome) == WELCOME
        return self

    def on_message(self, peer, message):
        assert peer is self.peer
        self.messages.put_nowait(message)

    def on_closed(self, peer, reason):
        self.reasons.append(reason)
        self.closed.set()

    async def until(self, kind):
        while not isinstance(message := await wait(self.messages.get()), kind):
            pass
        return message

    async def generate(self, request):
        """A whole request; its verdicts."""
        self.peer.send(opening(request))
        self.peer.send(Prompt(request, (1, 2, 3)))
        verdicts = [await self.until(Verdict)]
        while verdicts[-1].finish is Finish.NONE:
            self.peer.send(draft(request, len(verdicts), nodes=10 * len(verdicts)))
            verdicts.append(await self.until(Verdict))
        return verdicts


def wait(awaitable):
    return asyncio.wait_for(awaitable, PATIENCE_S)


def run(test):
    """Run an async test, and fail if the event loop was told of any exception."""

    async def guarded():
        unhandled = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: unhandled.append(what))
        await wait(test())
        assert unhandled == []

    asyncio.run(guarded())


async def read_frames(reader):
    """The messages of a raw socket up to its end."""
    data, found = b"", []
    with contextlib.suppress(ConnectionResetError):
        while chunk := await wait(reader.read(4096)):
            data += chunk
    while data:
        header = decode_header(data)
        found.append(decode_body(header, data[HEADER.size : header.length], VOCABULARY))
        data = data[header.length :]
    return found


def test_three_edges_generate_side_by_side_and_count_the_same_bytes():
    async def scenario():
        async with Server() as server:
            edges = [await Edge().greet(server.port) for _ in range(3)]
            for verdicts in await asyncio.gather(*(edge.generate(7) for edge in edges)):
                assert [v.round for v in verdicts] == [0, 1, 2, 3]
                assert [v.node for v in verdicts] == [0, 10, 20, 30]
            # The edge's Close of a finished request has arrived before the Pong leaves.
            for edge in edges:
                edge.peer.send(Ping(3))
                assert await edge.until(Pong) == Pong(3)
            for edge, peer in zip(edges, server.peers, strict=True):
                assert edge.peer.bytes_sent == peer.bytes_received > 0
                assert edge.peer.bytes_received == peer.bytes_sent > 0
                assert edge.peer.connection.frames_sent == peer.connection.frames_received == 8
                assert edge.peer.connection.frames_received == peer.connection.frames_sent == 6
                assert peer.connection.live_requests == 0
                assert peer.peer_name.startswith("127.0.0.1:")
            assert server.cancelled == []

    run(scenario)


def test_who_closes_is_told_nothing_and_the_other_is_told():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            edge.peer.close()
            edge.peer.close()
            edge.peer.send(Ping(1))
            assert edge.peer.is_closing
            await wait(edge.closed.wait())
            await wait(server.someone_left.wait())
            assert edge.reasons == [None]
            assert server.reasons == ["the peer closed the connection"]

    run(scenario)


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL, "frame type 84"),
        (b"\x10\x00\x01\x00\x00\x00\x00\x00STF1\x03\x00zz", ErrorCode.VERSION, "STF version 3"),
        (b"\xff\xff\x01\x00\x00\x00\x00\x00", ErrorCode.LIMIT, "65535 bytes"),
        (b"\x08\x00\x07\x00\x01\x00\x00\x00", ErrorCode.PROTOCOL, "may not send Close"),
    ],
)
def test_a_malformed_peer_is_told_why_and_others_go_on(data, code, reason):
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            (error,) = await read_frames(reader)
            assert (error.code, error.fatal) == (code, True)
            assert reason in error.sentence
            await wait(server.someone_left.wait())
            assert server.reasons == [f"the peer broke the protocol: {error.sentence}"]
            writer.close()
            assert len(await edge.generate(1)) == 4

    run(scenario)


def test_a_fault_after_good_messages_delivers_those():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            server.peers[0].data_received(edge.peer.connection.send(opening(9)) + b"\xff" * 8)
            assert server.peers[0].connection.request_state(9) is RequestState.PROMPTING
            error = await edge.until(Error)
            assert error.code is ErrorCode.PROTOCOL
            await wait(edge.closed.wait())
            assert edge.reasons == [f"the peer ended the connection: {error.sentence}"]

    run(scenario)


def test_a_refusal_in_answer_to_an_open_that_is_already_cancelled():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            connection = edge.peer.connection
            chunk = connection.send(opening(5, prompt_tokens=100)) + connection.send(Close(5))
            server.peers[0].data_received(chunk)
            edge.peer.send(Ping(1))
            await edge.until(Pong)
            assert (
                connection.request_state(5)
                is server.peers[0].connection.request_state(5)
                is RequestState.UNUSED
            )
            assert len(await edge.generate(5)) == 4

    run(scenario)


def test_a_refused_edge_hears_the_sentence():
    async def scenario():
        async with Server(welcome=None) as server:
            edge = Edge()
            edge.peer = await connect("127.0.0.1", server.port, edge.on_message, edge.on_closed)
            edge.peer.send(HELLO)
            peer = await wait(server.arrivals.get())
            peer.refuse(ErrorCode.VOCABULARY, "draft-135m and target-8b do not match")
            peer.send(WELCOME)
            assert (await edge.until(Error)).code is ErrorCode.VOCABULARY
            await wait(edge.closed.wait())
            assert edge.reasons == [
                "the peer ended the connection: draft-135m and target-8b do not match"
            ]
            await wait(server.someone_left.wait())
            assert server.reasons == ["draft-135m and target-8b do not match"]

    run(scenario)


def test_a_silent_peer_is_dropped_and_told():
    async def scenario():
        async with Server(handshake_timeout_s=0.05) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            (error,) = await read_frames(reader)
            assert error == Error(0, ErrorCode.TIMEOUT, True, "no handshake within 0.05 s")
            await wait(server.someone_left.wait())
            assert server.reasons == [error.sentence]
            writer.close()

    run(scenario)


def test_a_server_that_never_welcomes_is_given_up():
    async def scenario():
        async with Server(welcome=None) as server:
            edge = Edge()
            # connecting has the same time: enough for it on any machine
            link = await connect(
                "127.0.0.1", server.port, edge.on_message, edge.on_closed, timeout_s=1.5
            )
            link.send(HELLO)
            await wait(edge.closed.wait())
            hint = (
                "is this the port of edges, and not of --http? "
                "Or, if a tunnel is on the way, its MTU may be too large"
            )
            assert edge.reasons == [f"no handshake within 1.5 s; {hint}"]

    run(scenario)


def test_an_edge_that_is_sent_on_hangs_up_though_the_server_does_not():
    async def scenario():
        hung_up = asyncio.get_running_loop().create_future()

        async def send_on(reader, writer):
            greeting = encode_frame(HELLO, 0, 0)
            assert await reader.readexactly(len(greeting)) == greeting
            writer.write(encode_frame(REDIRECT, 0, 0))
            hung_up.set_result(await reader.read())  # all until the edge's end
            writer.close()

        async with await asyncio.start_server(send_on, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            edge = Edge()
            link = edge.peer = await connect("127.0.0.1", port, edge.on_message, edge.on_closed)
            link.send(HELLO)
            assert await edge.until(Redirect) == REDIRECT
            link.refuse(ErrorCode.AUTHENTICATION, "it proved nothing")  # too late, and no failure
            assert await wait(hung_up) == b""
            await wait(edge.closed.wait())
            assert edge.reasons == ["redirected to replica-2.example:8400"]

    run(scenario)


def test_no_timer_is_left_once_the_handshake_is_done():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            assert edge.peer._timer is server.peers[0]._timer is None

    run(scenario)


def test_a_slow_reader_is_closed_and_others_go_on():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(Connection(Role.EDGE).send(HELLO))
            assert await wait(server.arrivals.get()) is server.peers[0]
            peer, sent = await wait(server.arrivals.get()), 0
            notice = Error(0, ErrorCode.DRAINING, False, "x" * 400)
            while not peer.is_closing:
                peer.send(notice)
                sent += 1
                assert (
                    peer._transport.get_write_buffer_size()
                    <= MAX_WRITE_BUFFER_BYTES[Role.SERVER] + MOST_UNWRITTEN_BYTES + 410
                )
                assert sent < 100_000
            await wait(server.someone_left.wait())
            (reason,) = server.reasons
            assert reason.startswith("the peer reads too slowly")
            assert len(await edge.generate(1)) == 4
            slow.close()

    run(scenario)


def test_a_peer_that_leaves_within_a_frame():
    async def scenario():
        async with Server() as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(Connection(Role.EDGE).send(HELLO)[:20])
            writer.close()
            await wait(server.someone_left.wait())
            assert server.reasons == ["the peer closed the connection in the middle of a frame"]

    run(scenario)


class Recorded(asyncio.Transport):
    """Keeps what is written to it, write by write."""

    def __init__(self):
        super().__init__()
        self.writes, self.is_shut = [], False

    def write(self, data):
        self.writes.append(bytes(data))

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.is_shut

    def close(self):
        self.is_shut = True


def test_what_is_said_in_one_turn_leaves_in_one_piece_and_in_order():
    """Before it the loop does what else was to be done in that turn; a close loses nothing."""

    async def scenario():
        transport = Recorded()
        peer = FramedProtocol(Role.EDGE, lambda *_: None, lambda *_: None)
        peer.connection_made(transport)
        same, server = Connection(Role.EDGE), Connection(Role.SERVER)
        peer.send(HELLO)
        assert transport.writes == []
        await asyncio.sleep(0)
        server.feed(same.send(HELLO))
        server.next_message()
        welcome = server.send(WELCOME)
        peer.data_received(welcome)
        same.feed(welcome)
        same.next_message()
        transport.writes.clear()
        peer.send(Ping(1))
        peer.send(opening(3))
        await asyncio.sleep(0)
        assert transport.writes == [same.send(Ping(1)) + same.send(opening(3))]
        long = bytes(MOST_UNWRITTEN_BYTES)
        peer._write(long)
        assert transport.writes[1:] == [long], "much does not wait"
        peer.send(Close(3))
        peer.close()
        await asyncio.sleep(0)
        assert transport.writes[2:] == [same.send(Close(3))]
        peer.connection_lost(None)

    run(scenario)


def test_an_edge_may_queue_a_long_prompt_at_once():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            link = edge.peer._transport.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            server.peers[0]._transport.pause_reading()
            edge.peer.send(opening(1, prompt_tokens=1_000_000))
            for _ in range(250):
                edge.peer.send(Prompt(1, (7,) * 4000))
            waiting_bytes = edge.peer._transport.get_write_buffer_size()
            assert waiting_bytes > MAX_WRITE_BUFFER_BYTES[Role.SERVER]
            server.peers[0]._transport.resume_reading()
            assert (await edge.until(Verdict)).round == 0

    run(scenario)


def test_a_cancel_reaches_the_server_once():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            edge.peer.send(opening(3))
            edge.peer.send(Close(3))
            edge.peer.send(Close(3))
            edge.peer.send(Ping(1))
            await edge.until(Pong)
            assert server.cancelled == [3]

    run(scenario)


def test_the_socket_does_not_wait_to_fill_segments():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            for peer in (edge.peer, server.peers[0]):
                link = peer._transport.get_extra_info("socket")
                assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(scenario)


def test_nobody_listens():
    async def scenario():
        edge = Edge()
        with reserved_port() as port, pytest.raises(ConnectionError) as refused:
            await connect("127.0.0.1", port, edge.on_message, edge.on_closed)
        assert str(refused.value) == f"cannot connect to 127.0.0.1:{port}: nothing listens there"
        assert edge.reasons == []

    run(scenario)


@pytest.mark.parametrize("host", ["x" * 64, "a..b"])
def test_a_host_name_that_cannot_be(host):
    async def scenario():
        edge = Edge()
        with pytest.raises(ConnectionError, match=r"cannot connect to .*:9: this is not the name"):
            await connect(host, 9, edge.on_message, edge.on_closed)

    run(scenario)


def test_an_address_in_use():
    async def scenario():
        async with Server() as server:
            with pytest.raises(ConnectionError) as told:
                await listen("127.0.0.1", server.port, server.make_protocol)
            expected = f"cannot listen on 127.0.0.1:{server.port}: another program has this port"
            assert str(told.value) == expected

    run(scenario)


def test_an_owners_own_mistake_is_his_to_see():
    async def scenario():
        async with Server() as server:
            edge = await Edge().greet(server.port)
            with pytest.raises(ValueError, match="cannot send Draft"):
                edge.peer.send(draft(1, 1))
            assert edge.peer.connection.state is ConnectionState.OPEN
            assert len(await edge.generate(1)) == 4

    run(scenario)
