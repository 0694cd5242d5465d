"""Messages over a TCP connection: a thin asyncio adapter around `Connection`.

It moves bytes and ends connections that are silent, slow or broken. It does not know what the
messages mean: greeting and answering are the loops' business; nor how a connection comes about,
which is in places.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

from runtime.system import unacknowledged_bytes
from runtime.wire.auth import NO_CERTIFICATE, certificate_hash
from runtime.wire.connection import Connection, ConnectionState, Role
from runtime.wire.messages import Error, ErrorCode, Message, ProtocolError, Redirect

HANDSHAKE_TIMEOUT_S = 5.0
# A peer that reads nothing may keep a closing connection no longer than this.
CLOSE_TIMEOUT_S = 1.0
# How often is looked whether a slow peer has taken everything: nobody tells.
FLUSH_LOOK_S = 0.01
# A server hoards nothing for a slow edge; what an edge queues are its own prompts.
MAX_WRITE_BUFFER_BYTES = {Role.SERVER: 64 * 1024, Role.EDGE: 4 * 1024 * 1024}
MOST_UNWRITTEN_BYTES = 16 * 1024  # that wait for the end of a turn of the event loop
# A dead link is noticed after about 20 s, for on a slow one a segment may be under way for long; an
# edge that waits looks sooner. Not every system has every option.
SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 20_000),
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
MTU_HINT = "if a tunnel is on the way, its MTU may be too large"
SILENT_HINT = f"is this the port of edges, and not of --http? Or, {MTU_HINT}"
# Where a frame has its length: longer than any frame of a handshake.
TLS_RECORDS = (b"\x15\x03", b"\x16\x03")


class Speakers:
    """Connections that have something to write when this turn of the event loop is over.

    All of a server's in one line: to call the loop for each would cost as much as to make a frame.
    """

    def __init__(self) -> None:
        self._line: deque[FramedProtocol] = deque()

    def add(self, one: FramedProtocol) -> None:
        """One that was not there since it wrote last."""
        if not self._line:
            asyncio.get_running_loop().call_soon(self._write_out)
        self._line.append(one)

    def _write_out(self) -> None:
        try:
            while self._line:
                self._line.popleft().write_out()
        finally:
            if self._line:  # whatever one has raised, of which asyncio tells
                asyncio.get_running_loop().call_soon(self._write_out)


class FramedProtocol(asyncio.Protocol):
    """One TCP connection that carries messages.

    on_message(peer, message) is called for each message received, on_closed(peer, reason) once,
    when the connection has gone; reason is None only if this side called close. Both run in the
    event loop, and all methods must be called there. on_connected(peer) is called when the
    connection stands, TLS included; a sentence that it returns is told to the peer as a refusal.

    ended_with  the code of the fatal Error that ended the connection, whoever sent it
    cut_bytes   what was sent and had to be dropped, because the peer did not take it in time
    """

    def __init__(
        self,
        role: Role,
        on_message: Callable[[FramedProtocol, Message], None],
        on_closed: Callable[[FramedProtocol, str | None], None],
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        on_connected: Callable[[FramedProtocol], str | None] = lambda peer: None,
        speakers: Speakers | None = None,  # a line of its own, if it shares none
    ) -> None:
        self.connection = Connection(role)
        self.peer_name = "nobody yet"
        self.host = "nowhere yet"
        self.bytes_sent = 0
        self.bytes_received = 0
        self.ended_with: ErrorCode | None = None
        self.cut_bytes = 0
        self._is_silent = False
        self._most_waiting_bytes = 0
        self._on_message = on_message
        self._on_closed = on_closed
        self._handshake_timeout_s = handshake_timeout_s
        self._transport: asyncio.Transport | None = None
        self._below: asyncio.Transport | None = None
        self._speakers = Speakers() if speakers is None else speakers
        self._unwritten = bytearray()  # said in this turn of the event loop
        self._timer: asyncio.TimerHandle | None = None
        self._reason: str | None = None
        self._on_connected = on_connected
        self._gone = asyncio.Event()

    @property
    def certificate(self) -> bytes:
        """The hash of the server's certificate, on the edge; empty without TLS."""
        if self._transport is None:
            return NO_CERTIFICATE
        if link := self._transport.get_extra_info("ssl_object"):
            return certificate_hash(link.getpeercert(binary_form=True))
        known: bytes = self._transport.get_extra_info("certificate", NO_CERTIFICATE)
        return known

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended or is about to: nothing can be sent any more."""
        return self._transport is None or self._is_silent or self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Write a message; nothing happens if the connection is closing (on_closed will tell).

        A fatal Error closes the connection, with its sentence as the reason, and so does a
        Redirect. Raises ValueError if the protocol forbids the message now.
        """
        if self.is_closing:
            return
        self._write(self.connection.send(message))
        match message:
            case Error(fatal=True):
                self.ended_with = message.code
                self._close(message.sentence)
            case Redirect():
                self._close(f"redirected to {message.host}:{message.port}")

    def refuse(self, code: ErrorCode, sentence: str) -> None:
        """Send a fatal Error with this sentence, and close."""
        self.send(Error(0, code, fatal=True, sentence=sentence))

    def close(self) -> None:
        """Close when what has been sent is written."""
        self._close(None)

    def abort(self) -> None:
        """Close at once, whatever is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    async def hang_up(self, within_s: float) -> None:
        """Close once the other machine has all that was sent, or cut it after `within_s` seconds.

        Returns when the connection has gone; until then the peer may go on sending, unheard.
        """
        until_s = time.monotonic() + within_s
        while not self.is_closing and self._unsent_bytes and time.monotonic() < until_s:
            await asyncio.sleep(FLUSH_LOOK_S)
        if self._transport is not None and not self._transport.is_closing():
            if waiting_bytes := self._unsent_bytes:
                sentence = f"the peer did not take the last {waiting_bytes} bytes"
                self._cut(waiting_bytes, f"{sentence} within {within_s:.3g} s")
            else:
                self._say_end(self._transport)
        await self._gone.wait()

    def _say_end(self, transport: asyncio.Transport) -> None:
        """Send nothing more, and let the peer hang up: closed before, what it sends now would be
        answered by a reset, at which it might drop what it has not read yet."""
        self.write_out()
        if transport.can_write_eof():
            transport.write_eof()
            self._is_silent = True
            self._start_timer(CLOSE_TIMEOUT_S, transport.abort)
        else:  # TLS waits for the peer's farewell by itself
            self._close(None)

    @property
    def taken_bytes(self) -> int:
        """Of what was sent, what the other machine has as far as this system knows."""
        return self.bytes_sent - self._unsent_bytes

    @property
    def _unsent_bytes(self) -> int:
        """What waits here, and what the other machine has not confirmed."""
        if self._transport is None:
            return 0
        link: socket.socket | None = self._transport.get_extra_info("socket")
        under_way = unacknowledged_bytes(link.fileno()) if link else 0  # none in memory
        return len(self._unwritten) + self._buffered_bytes(self._transport) + under_way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "only stream transports carry frames"
        self._transport, self._below = transport, _below(transport)
        self._most_waiting_bytes = transport.get_extra_info(
            "most_waiting_bytes", MAX_WRITE_BUFFER_BYTES[self.connection.role]
        )
        name = transport.get_extra_info("peername")
        self.peer_name, self.host = address(name), _host(name)
        if link := transport.get_extra_info("socket"):
            _set_options(link)
        self._start_timer(self._handshake_timeout_s, self._give_up_handshake)
        if (sentence := self._on_connected(self)) is not None:
            self.refuse(ErrorCode.BUSY, sentence)

    def data_received(self, data: bytes) -> None:
        if self._is_silent:
            return
        if not self.bytes_received and data[:2] in TLS_RECORDS:
            self._meet_tls()
        self.bytes_received += len(data)
        self.connection.feed(data)
        if (
            self.connection.state is ConnectionState.TEMPLATE_DUE
            and self.connection.role is Role.EDGE
        ):
            # a template is long: as long as some of it comes, the server is there
            self._start_timer(self._handshake_timeout_s, self._give_up_handshake)
        # One by one, so that each is handled in the very state that it brought about.
        while self.connection.buffered_bytes and not self.is_closing:
            if (message := self._next_message()) is None:
                return
            match message:
                case Error(fatal=True):
                    self.ended_with = message.code
                    self._close(f"the peer ended the connection: {message.sentence}")
                case Redirect():  # without waiting for the peer to hang up: it may never
                    self._close(f"redirected to {message.host}:{message.port}")
            self._on_message(self, message)

    def _meet_tls(self) -> None:
        if self.connection.role is Role.SERVER:
            sentence = "the edge speaks TLS, and this server has no --tls-certificate"
            self.refuse(ErrorCode.PROTOCOL, sentence)
        else:
            self._close("the server speaks TLS: give --tls")

    def _next_message(self) -> Message | None:
        try:
            message = self.connection.next_message()
        except ProtocolError as fault:
            self.ended_with = fault.code
            self._write(self.connection.data_to_send())
            self._close(f"the peer broke the protocol: {fault.sentence}")
            return None
        if owed := self.connection.data_to_send():
            self._write(owed)
        if self._timer is not None:
            self._end_handshake()
        return message

    def eof_received(self) -> bool:
        if self.connection.role is Role.EDGE and not self.bytes_received:
            self._close("the server hung up without a word; if it has a certificate, give --tls")
            return False
        where = " in the middle of a frame" if self.connection.buffered_bytes else ""
        self._close(f"the peer closed the connection{where}")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        if error is not None and self._reason is None:
            self._reason = f"the connection is lost: {error}"
        self._gone.set()
        self._on_closed(self, self._reason)

    def _write(self, data: bytes) -> None:
        if not data or self._transport is None:
            return
        self.bytes_sent += len(data)
        if not self._unwritten:
            self._speakers.add(self)
        self._unwritten += data
        if len(self._unwritten) >= MOST_UNWRITTEN_BYTES:
            self.write_out()
        if self._timer is not None:
            self._end_handshake()

    def write_out(self) -> None:
        """Let what was said in one turn of the event loop leave in one piece, after that turn.

        To write costs more than anything else that is done for a message, and wakes the reader: a
        server lets the model begin its next step first. Much does not wait for the rest.
        """
        if not self._unwritten or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(bytes(self._unwritten))
        self._unwritten.clear()
        waiting_bytes = self._buffered_bytes(self._transport)
        if waiting_bytes > self._most_waiting_bytes:
            sentence = f"the peer reads too slowly: {waiting_bytes} bytes wait for it"
            self._cut(waiting_bytes, sentence)

    def _buffered_bytes(self, transport: asyncio.Transport) -> int:
        """What was not given to the system yet."""
        waiting_bytes = transport.get_write_buffer_size()
        if self._below is not None:
            waiting_bytes += self._below.get_write_buffer_size()
        return waiting_bytes

    def _cut(self, waiting_bytes: int, reason: str) -> None:
        self.cut_bytes, self._reason = waiting_bytes, reason
        self.abort()

    def _end_handshake(self) -> None:
        if self.connection.state is ConnectionState.OPEN:
            self._stop_timer()

    def _give_up_handshake(self) -> None:
        hint = f"; {SILENT_HINT}" if self.connection.role is Role.EDGE else ""
        self.refuse(ErrorCode.TIMEOUT, f"no handshake within {self._handshake_timeout_s:g} s{hint}")

    def _close(self, reason: str | None) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._reason = reason
        self.write_out()
        self._transport.close()
        self._start_timer(CLOSE_TIMEOUT_S, self._transport.abort)

    def _start_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _below(transport: asyncio.Transport) -> asyncio.Transport | None:
    """Under TLS, where what is encrypted waits: from Python 3.11 on asyncio's own count of what was
    not given to the system yet leaves that out."""
    below: asyncio.Transport | None
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return below if sys.version_info >= (3, 11) else None


def address(name: tuple[object, ...] | str | None) -> str:
    """A socket's name as people write it: host:port, an IPv6 host in brackets."""
    host = _host(name)
    if not isinstance(name, tuple):
        return host
    return f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


def _host(name: tuple[object, ...] | str | None) -> str:
    """An address without its port; an IPv4 one on a socket of both families is one of IPv4."""
    host = name[0] if isinstance(name, tuple) else name or "nowhere"
    return str(host).removeprefix("::ffff:")


def _set_options(link: socket.socket) -> None:
    for level, name, value in SOCKET_OPTIONS:
        # A missing option costs some seconds on a dead link, nothing else.
        with contextlib.suppress(AttributeError, OSError):
            link.setsockopt(level, getattr(socket, name), value)
