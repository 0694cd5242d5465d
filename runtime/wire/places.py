"""Where connections begin: a port to listen on, a server to connect to.

Whatever keeps one from coming about is a sentence that a person can act on. Knows no messages.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Protocol

from runtime.wire.connection import Role
from runtime.wire.messages import Message
from runtime.wire.tcp import HANDSHAKE_TIMEOUT_S, MTU_HINT, FramedProtocol, address
from runtime.wire.tls import handshake_failure

# Before another address of the same name is tried beside the first (RFC 8305).
NEXT_ADDRESS_S = 0.25
# To see, after the time for connecting is over, whether at least the name is known.
NAME_LOOK_S = 0.5
ERRNO = re.compile(r"\[Errno (\d+)\]")


class Port(Protocol):
    """An open port, by its name."""

    def getsockname(self) -> Any:
        """Address and port, and for IPv6 two numbers more."""


class Listener(Protocol):
    """What an asyncio.Server is to those who serve: ports, perhaps not open yet."""

    @property
    def sockets(self) -> Sequence[Port]: ...
    async def start_serving(self) -> None: ...
    def close(self) -> None: ...


class AddressAway(ConnectionError):
    """An address of no interface that is up: it may come with one, at boot or with a tunnel.

    Or one that a network stack is to have which does not run yet.
    """


async def listen(
    host: str,
    port: int,
    make_protocol: Callable[[], asyncio.BaseProtocol],
    start: bool = True,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Accept connections on host:port, one protocol each; port 0 picks a free one.

    Without `start` the port is only reserved, until start_serving is called on the result.
    The host :: takes IPv4 as well. Raises ConnectionError with a sentence if the address cannot be
    had, AddressAway if this machine does not have it now.
    """
    loop = asyncio.get_running_loop()
    timeout_s = HANDSHAKE_TIMEOUT_S if tls else None
    options: dict[str, Any] = {"start_serving": start, "ssl": tls}
    options["ssl_handshake_timeout"] = timeout_s
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            options["sock"] = _both_families(port)
            return await loop.create_server(make_protocol, **options)
        return await loop.create_server(make_protocol, host, port, **options)
    except (OSError, UnicodeError) as error:
        raise not_listening(host, port, error) from error


async def open_port(listener: Listener) -> None:
    """Accept connections on a port that is only reserved. Raises ConnectionError.

    Two programs may reserve one port, where neither accepts connections yet.
    """
    try:
        await listener.start_serving()
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        host, port = listener.sockets[0].getsockname()[:2]
        raise not_listening(host, port, error) from error


def not_listening(host: str, port: int, error: OSError | UnicodeError) -> ConnectionError:
    """What is raised where the address cannot be had: AddressAway if it may be later."""
    number = getattr(error, "errno", None)
    # the second as Python 3.13 says it, which passes over the addresses that are not there
    if number == errno.EADDRNOTAVAIL or "could not bind on any address" in str(error):
        reason = "this machine does not have this address"
        return AddressAway(f"cannot listen on {address((host, port))}: {reason}")
    # asyncio writes the address in front of the reason once more
    reason = reason_of(error).rpartition("): ")[2]
    if number == errno.EADDRINUSE:
        reason = "another program has this port"
    return ConnectionError(f"cannot listen on {address((host, port))}: {reason}")


def _both_families(port: int) -> socket.socket:
    """A port of all addresses, those of IPv4 too: asyncio's own sockets for :: take IPv6 alone."""
    link = socket.socket(socket.AF_INET6)
    try:
        if os.name == "posix":  # elsewhere it would share a port in use
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        link.bind(("::", port))
    except OSError:
        link.close()
        raise
    return link


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
    try:
        transport = await _reach(host, port, asyncio.Protocol() if tls else protocol, timeout_s)
        if tls:
            await _encrypt(transport, protocol, tls, host, timeout_s)
    except (OSError, UnicodeError) as error:
        where = address((host, port))
        raise ConnectionError(f"cannot connect to {where}: {reason_of(error)}") from error
    return protocol


async def listens(host: str, port: int, timeout_s: float) -> str:
    """Why nobody can connect to host:port; empty if somebody listens there."""
    try:
        (await _reach(host, port, asyncio.Protocol(), timeout_s)).abort()
    except (OSError, UnicodeError) as error:
        return reason_of(error)
    return ""


async def _reach(
    host: str, port: int, protocol: asyncio.BaseProtocol, timeout_s: float
) -> asyncio.Transport:
    """A TCP connection to whichever address of the host answers first."""
    loop = asyncio.get_running_loop()
    connecting = loop.create_connection(
        lambda: protocol, host, port, happy_eyeballs_delay=NEXT_ADDRESS_S
    )
    try:
        transport, _ = await asyncio.wait_for(connecting, timeout_s)
        return transport
    except asyncio.TimeoutError:
        pass
    try:
        if not _is_number(host):
            await asyncio.wait_for(loop.getaddrinfo(host, port), NAME_LOOK_S)
    except asyncio.TimeoutError:
        raise ConnectionError(f"no name server knew the host within {timeout_s:g} s") from None
    raise ConnectionError(f"no answer within {timeout_s:g} s")


def _is_number(host: str) -> bool:
    """Whether a host is an address itself, which no name server has to know."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _encrypt(
    transport: asyncio.Transport,
    protocol: FramedProtocol,
    tls: ssl.SSLContext,
    host: str,
    timeout_s: float,
) -> None:
    """Hand a connection over to the protocol, under TLS."""
    encrypted = await asyncio.get_running_loop().start_tls(
        transport, protocol, tls, server_hostname=host, ssl_handshake_timeout=timeout_s
    )
    if encrypted is None:  # it was closed in between
        raise ConnectionError("the server hung up without a word; it may have no certificate")
    protocol.connection_made(encrypted)


def reason_of(error: Exception) -> str:
    """Why no connection came about, in a sentence."""
    if isinstance(error, ssl.SSLError):
        return handshake_failure(error, Role.EDGE)
    if isinstance(error, ConnectionAbortedError):
        return f"no TLS handshake in time; {MTU_HINT}"
    # asyncio puts the errors of several addresses into one text
    if {errno.ECONNREFUSED} == {int(number) for number in ERRNO.findall(str(error))}:
        return "nothing listens there"
    if isinstance(error, UnicodeError):
        return "this is not the name of a host"
    return getattr(error, "strerror", None) or str(error)
