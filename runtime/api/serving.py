"""An app at an address, while a context lasts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.api.errors import STOPPING, APIError
from runtime.config import parse_address
from runtime.wire.places import listen

REQUEST_S = 60.0  # from its first byte to its last
END_S = 1.0  # that answers have to end by themselves, and then that clients have to take the end


@asynccontextmanager
async def serving(
    address: str,
    app: ASGIApp,
    most: int | None = None,
    option: str = "--http",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Serve an app at host:port while the context lasts; gives its URL.

    Port 0 picks a free one; beyond `most` connections all are told 503. `option` is where the
    address comes from. What is still being answered when the context ends is cancelled a while
    later. Raises what `listen` raises if the address cannot be had.
    """
    try:
        reserved = await listen(*parse_address(address, option, 0), asyncio.Protocol, start=False)
    except ConnectionError as error:
        raise type(error)(f"{error}; give {option} another address") from error
    sockets = [socket.dup() for socket in reserved.sockets]
    for socket in sockets:
        socket.listen()  # whoever reads the URL may connect, even before the first turn below
    host, port = sockets[0].getsockname()[:2]
    reserved.close()

    async def up_to_most(scope: Scope, receive: Receive, send: Send) -> None:
        n_open = len(server.server_state.connections)
        is_full = most is not None and n_open > most
        sentence = f"{n_open} connections are open, more than are served; try again in a while"
        answer = APIError(503, sentence).response() if is_full else app
        await _in_order(answer, scope, receive, send)

    server = _Quiet(_config(up_to_most, tls))
    running = asyncio.ensure_future(server.serve(sockets))
    try:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        yield f"{'https' if tls else 'http'}://{place}"
    finally:
        await _end(server, running)


async def _end(server: uvicorn.Server, running: asyncio.Future[None]) -> None:
    """Let answers end, then make them; who does not take the end of one is hung up on.

    Each time that it is cancelled it goes on at once to what is next.
    """
    server.should_exit = True
    try:
        await asyncio.wait({running}, timeout=END_S)
    finally:
        try:
            for answering in server.server_state.tasks:
                answering.cancel()
            await asyncio.wait({running}, timeout=END_S)
        finally:
            for connection in [*server.server_state.connections]:
                connection.transport.abort()
            await running


async def _in_order(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer; where that is cancelled the client has an error, or as much of a stream as came."""
    begun = ended = is_stream = False

    async def seen(message: Message) -> None:
        nonlocal begun, ended, is_stream
        if message["type"] == "http.response.start":
            begun = True
            names = {name.lower() for name, _ in message.get("headers", ())}
            is_stream = b"content-length" not in names
        else:
            ended = not message.get("more_body", False)
        await send(message)

    try:
        await app(scope, receive, seen)
    except asyncio.CancelledError:  # not passed on, as it is no fault of the app
        if not begun:
            await APIError(503, STOPPING).response()(scope, receive, send)
        elif is_stream and not ended:
            await send({"type": "http.response.body", "body": b""})
        while (await receive())["type"] != "http.disconnect":
            pass  # an answer that is not whole, which its client does not take


def _config(app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        http=_Punctual,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    config.load()
    config.ssl = tls
    return config


class _Punctual(H11Protocol):
    """Hangs up on those who begin a request and do not end it: they would keep others out."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From here on a request is due."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """A request may be whole now, or have begun."""
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        super().connection_lost(exc)
        if self._due is not None:
            self._due.cancel()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in OpenAI's shape; behind an answer it is not answered."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            told = APIError(400, msg).response()
            head = [*told.raw_headers, (b"connection", b"close")]
            events = (
                h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
                h11.Data(data=bytes(told.body)),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Who asks for a WebSocket is answered as if for none: that is no trouble of ours, and no
        library is missing for it."""

    def _look(self) -> None:
        is_due = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self._due is not None and not is_due:
            self._due.cancel()
            self._due = None
        elif self._due is None and is_due:
            self._due = self.loop.call_later(REQUEST_S, self.transport.close)


class _Quiet(uvicorn.Server):
    """Leaves the signals to the program that it belongs to."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
