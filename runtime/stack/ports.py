"""Where connections by the daemon begin: a port to listen on, a server to connect to.

The same as asyncio's own, with a daemon's path in front, and terms of TLS as csrc/stack/link.h
has them in place of a context.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from runtime.stack.attachment import Attachment, Event, to_bytes
from runtime.stack.transport import StackTransport, failure

log = logging.getLogger(__name__)

ATTACH_AGAIN_S = 0.5
GONE = "the network stack of this host has gone"

Made = TypeVar("Made")


class _Coming(Generic[Made]):
    """Hears the first event of a slot, and makes of it who hears the next ones."""

    def __init__(self, attachment: Attachment, slot: int, make: Callable[[Event], Made]) -> None:
        self.made: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._attachment, self._slot, self._make = attachment, slot, make
        attachment.ends[slot] = self

    async def wait(self) -> Made:
        """Raises OSError."""
        try:
            return await self.made
        except asyncio.CancelledError:
            self.abort()
            raise

    def heard(self, event: Event) -> None:
        if event[0] == self._attachment.kind.CLOSED:
            self._fail(failure(event[2]))
        elif not self.made.done():  # else it was given up
            self.made.set_result(self._make(event))

    def lost(self) -> None:
        self._fail(ConnectionError(GONE))

    def abort(self) -> None:
        self._attachment.guest.abort(self._slot)

    def _fail(self, error: OSError) -> None:
        if not self.made.done():
            self.made.set_exception(error)


async def connect(
    path: str, host: str, port: int, protocol: asyncio.Protocol, terms: str = ""
) -> StackTransport:
    """A connection by the daemon at a path, to the first address of the host that answers.

    Raises OSError; of a ConnectionError the text is a sentence.
    """
    error: OSError = ConnectionError("this host has no address")
    for address in await _addresses(host, port):
        try:
            return await _connect(Attachment(path), address, port, protocol, terms)
        except OSError as failed:
            error = failed
    raise error


async def _connect(
    attachment: Attachment, address: str, port: int, protocol: asyncio.Protocol, terms: str
) -> StackTransport:
    slot = attachment.guest.connect(to_bytes(address), port, terms)

    def make(event: Event) -> StackTransport:
        return StackTransport(attachment, event, protocol)

    return await _Coming(attachment, slot, make).wait()


async def listen(
    path: str, host: str, port: int, make_protocol: Callable[[], asyncio.Protocol], terms: str = ""
) -> Listener:
    """Reserve host:port with the daemon at a path, to open by `start_serving`. Raises OSError."""
    listener = Listener(path, make_protocol, terms)
    numeric = await _addresses(host, port)
    try:
        for address in numeric if port else numeric[:1]:
            await listener.reserve(address, port)
    except BaseException:
        listener.close()
        raise
    return listener


class Listener:
    """Ports of the daemon's; each connection that comes gets a protocol.

    A daemon that has gone is looked for until it is back, and gives the same ports again.
    """

    def __init__(
        self, path: str, make_protocol: Callable[[], asyncio.Protocol], terms: str
    ) -> None:
        """Raises ConnectionError."""
        self.names: list[tuple[str, int]] = []  # (address, port)
        self._path, self._make_protocol, self._terms = path, make_protocol, terms
        self._attachment = Attachment(path)
        self._ports: list[_Port] = []
        self._serves = False
        self._returning: asyncio.Task[None] | None = None

    @property
    def sockets(self) -> tuple[_Port, ...]:
        """As an asyncio.Server has them: each knows its name."""
        return tuple(self._ports)

    async def reserve(self, address: str, port: int) -> None:
        """One port more; 0 picks a free one. Raises OSError."""
        attachment = self._attachment
        slot = attachment.guest.listen(to_bytes(address), port, self._terms)
        made = _Coming(attachment, slot, lambda event: _Port(self, attachment, event, address))
        port_there = await made.wait()
        self._ports.append(port_there)
        self.names.append(port_there.getsockname())

    async def start_serving(self) -> None:
        """Let connections come. Raises OSError."""
        self._serves = True
        for port in self._ports:
            await port.open()

    def renew(self, terms: str) -> None:
        """From now on connections that come have these terms of TLS."""
        self._terms = terms
        for port in self._ports:
            port.renew(terms)

    def close(self) -> None:
        """Let no more come; those that are there stay."""
        if self._returning is not None:
            self._returning.cancel()
        for port in self._ports:
            port.abort()
        self._ports.clear()
        self._attachment.detach_if_idle()

    def new_protocol(self) -> asyncio.Protocol:
        """For one connection more."""
        return self._make_protocol()

    def lost(self, port: _Port) -> None:
        """The daemon has gone, and this port."""
        if port in self._ports and self._returning is None:
            log.warning("%s; it is looked for", GONE)
            self._returning = asyncio.ensure_future(self._return())

    async def _return(self) -> None:
        names = self.names
        while True:
            await asyncio.sleep(ATTACH_AGAIN_S)
            try:
                await self._reserve_again(names)
                break
            except OSError as error:
                log.debug("not yet: %s", error)
        self._returning = None
        log.warning("the network stack of this host is back")

    async def _reserve_again(self, names: list[tuple[str, int]]) -> None:
        for port in self._ports:
            port.abort()
        self._ports, self.names = [], []
        self._attachment = Attachment(self._path)
        for name in names:
            await self.reserve(*name)
        if self._serves:
            await self.start_serving()


class _Port:
    """One address of a listener."""

    def __init__(
        self, listener: Listener, attachment: Attachment, event: Event, address: str
    ) -> None:
        _, self._slot, port = event
        self._name = address, port
        self._listener, self._attachment = listener, attachment
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opened.set_result(None)
        attachment.ends[self._slot] = self

    def getsockname(self) -> tuple[str, int]:
        """Its address and port."""
        return self._name

    async def open(self) -> None:
        """Let connections come. Raises OSError."""
        self._opened = asyncio.get_running_loop().create_future()
        self._attachment.guest.accept(self._slot)
        await self._opened

    def renew(self, terms: str) -> None:
        """Have other terms of TLS."""
        self._attachment.guest.renew(self._slot, terms)

    def heard(self, event: Event) -> None:
        kind = self._attachment.kind
        if event[0] == kind.ACCEPTED:
            StackTransport(self._attachment, event, self._listener.new_protocol())
        elif not self._opened.done():
            if event[0] == kind.CLOSED:
                self._opened.set_exception(failure(event[2]))
            else:
                self._opened.set_result(None)

    def lost(self) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(GONE))
        self._listener.lost(self)

    def abort(self) -> None:
        self._attachment.guest.abort(self._slot)


async def _addresses(host: str, port: int) -> list[str]:
    """All of a name, without doubles. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port)
    return list(dict.fromkeys(str(name[0]) for *_, name in found))
