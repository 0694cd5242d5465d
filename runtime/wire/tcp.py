"""The only sockets of the protocol: a thin asyncio adapter around `Connection`.

It moves bytes and ends connections that are silent, slow or broken. It does not know what the
messages mean: greeting and answering are the loops' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from runtime.wire.auth import NO_CERTIFICATE, certificate_hash
from runtime.wire.connection import Connection, Role, State
from runtime.wire.messages import Error, ErrorCode, Message, ProtocolError, Redirect

HANDSHAKE_TIMEOUT_S = 5.0
# A peer that reads nothing may keep a closing connection no longer than this.
CLOSE_TIMEOUT_S = 1.0
# A server hoards nothing for a slow edge; what an edge queues are its own prompts.
MAX_WRITE_BUFFER_BYTES = {Role.SERVER: 64 * 1024, Role.EDGE: 4 * 1024 * 1024}
# A dead link is noticed after about 3 s; not every system has every option.
SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 3000),
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)


class FramedProtocol(asyncio.Protocol):
    """One TCP connection that carries messages.

    on_message(peer, message) is called for each message received, on_closed(peer, reason) once,
    when the connection has gone; reason is None only if this side called close. Both run in the
    event loop, and all methods must be called there. on_connected(peer) is called when the
    connection stands, TLS included; a sentence that it returns is told to the peer as a refusal.

    ended_with  the code of the fatal Error that ended the connection, whoever sent it
    """

    def __init__(
        self,
        role: Role,
        on_message: Callable[[FramedProtocol, Message], None],
        on_closed: Callable[[FramedProtocol, str | None], None],
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        on_connected: Callable[[FramedProtocol], str | None] = lambda peer: None,
    ) -> None:
        self.connection = Connection(role)
        self.peer_name = "nobody yet"
        self.host = "nowhere yet"
        self.bytes_sent = 0
        self.bytes_received = 0
        self.ended_with: ErrorCode | None = None
        self._on_message = on_message
        self._on_closed = on_closed
        self._handshake_timeout_s = handshake_timeout_s
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason: str | None = None
        self._on_connected = on_connected

    @property
    def frames_sent(self) -> int:
        """Frames written, the protocol's own answers included."""
        return self.connection.frames_sent

    @property
    def frames_received(self) -> int:
        """Frames received, those that were not delivered included."""
        return self.connection.frames_received

    @property
    def certificate(self) -> bytes:
        """The hash of the server's certificate, on the edge; empty without TLS."""
        link = self._transport and self._transport.get_extra_info("ssl_object")
        return certificate_hash(link.getpeercert(binary_form=True)) if link else NO_CERTIFICATE

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended or is about to: nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "only stream transports carry frames"
        self._transport = transport
        address = transport.get_extra_info("peername")
        self.peer_name, self.host = _address(address), str(address and address[0])
        _set_options(transport.get_extra_info("socket"))
        self._start_timer(self._handshake_timeout_s, self._give_up_handshake)
        if (sentence := self._on_connected(self)) is not None:
            self.refuse(ErrorCode.BUSY, sentence)

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.connection.feed(data)
        # One by one, so that each is handled in the very state that it brought about.
        while not self.is_closing and (message := self._next_message()) is not None:
            match message:
                case Error(fatal=True):
                    self.ended_with = message.code
                    self._close(f"the peer ended the connection: {message.sentence}")
                case Redirect():  # without waiting for the peer to hang up: it may never
                    self._close(f"redirected to {message.host}:{message.port}")
            self._on_message(self, message)

    def _next_message(self) -> Message | None:
        try:
            message = self.connection.next_message()
        except ProtocolError as fault:
            self.ended_with = fault.code
            self._write(self.connection.data_to_send())
            self._close(f"the peer broke the protocol: {fault.sentence}")
            return None
        self._write(self.connection.data_to_send())
        self._end_handshake()
        return message

    def eof_received(self) -> bool:
        where = " in the middle of a frame" if self.connection.buffered_bytes else ""
        self._close(f"the peer closed the connection{where}")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        if error is not None and self._reason is None:
            self._reason = f"the connection is lost: {error}"
        self._on_closed(self, self._reason)

    def _write(self, data: bytes) -> None:
        if not data or self._transport is None or self._transport.is_closing():
            return
        self.bytes_sent += len(data)
        self._transport.write(data)
        self._end_handshake()
        waiting_bytes = self._transport.get_write_buffer_size()
        if waiting_bytes > MAX_WRITE_BUFFER_BYTES[self.connection.role]:
            self._reason = f"the peer reads too slowly: {waiting_bytes} bytes wait for it"
            self._transport.abort()

    def _end_handshake(self) -> None:
        if self.connection.state is State.OPEN:
            self._stop_timer()

    def _give_up_handshake(self) -> None:
        self.refuse(ErrorCode.TIMEOUT, f"no handshake within {self._handshake_timeout_s:g} s")

    def _close(self, reason: str | None) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._reason = reason
        self._transport.close()
        self._start_timer(CLOSE_TIMEOUT_S, self._transport.abort)

    def _start_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(delay_s, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def listen(
    host: str,
    port: int,
    make_protocol: Callable[[], asyncio.BaseProtocol],
    start: bool = True,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Accept connections on host:port, one protocol each; port 0 picks a free one.

    Without `start` the port is only reserved, until start_serving is called on the result.
    Raises ConnectionError with a sentence if the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    timeout_s = HANDSHAKE_TIMEOUT_S if tls else None
    try:
        return await loop.create_server(
            make_protocol,
            host,
            port,
            start_serving=start,
            ssl=tls,
            ssl_handshake_timeout=timeout_s,
        )
    except (OSError, UnicodeError) as error:
        raise ConnectionError(f"cannot listen on {host}:{port}: {_sentence(error)}") from error


async def connect(
    host: str,
    port: int,
    on_message: Callable[[FramedProtocol, Message], None],
    on_closed: Callable[[FramedProtocol, str | None], None],
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
) -> FramedProtocol:
    """Connect as an edge; the caller then sends Hello and has timeout_s until the Welcome.

    Raises ConnectionError with a sentence if nobody answers there within timeout_s.
    """
    protocol = FramedProtocol(Role.EDGE, on_message, on_closed, timeout_s)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    loop = asyncio.get_running_loop()
    connecting = loop.create_connection(lambda: protocol, host, port, ssl=tls)
    try:
        await asyncio.wait_for(connecting, timeout_s)
    except asyncio.TimeoutError as error:
        sentence = f"cannot connect to {where}: no answer within {timeout_s:g} s"
        raise ConnectionError(sentence) from error
    except (OSError, UnicodeError) as error:
        raise ConnectionError(f"cannot connect to {where}: {_sentence(error)}") from error
    return protocol


def _sentence(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, UnicodeError):
        return "this is not the name of a host"
    return getattr(error, "strerror", None) or str(error)


def _address(name: tuple[object, ...] | str | None) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)


def _set_options(link: socket.socket) -> None:
    for level, name, value in SOCKET_OPTIONS:
        # A missing option costs some seconds on a dead link, nothing else.
        with contextlib.suppress(AttributeError, OSError):
            link.setsockopt(level, getattr(socket, name), value)
