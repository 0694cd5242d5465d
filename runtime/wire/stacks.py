"""Where connections by the host's network stack begin, which the option --stack names.

The same as places.py for whoever has no sockets: the daemon has them, and ends TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from runtime.stack import ports
from runtime.stack.attachment import StackAway
from runtime.wire.connection import Role
from runtime.wire.messages import Message
from runtime.wire.places import AddressAway, Listener, not_listening
from runtime.wire.tcp import HANDSHAKE_TIMEOUT_S, FramedProtocol, address
from runtime.wire.tls import Certificate, TLSError, Trust


async def listen(
    stack: str,
    host: str,
    port: int,
    make_protocol: Callable[[], asyncio.Protocol],
    certificate: Certificate | None = None,
) -> ports.Listener:
    """Reserve host:port of the stack until start_serving is called on the result.

    Raises ConnectionError with a sentence, AddressAway if this machine does not have the address
    now, or no stack, and TLSError where the certificate cannot be read.
    """
    terms = certificate.terms if certificate else ""
    try:
        return await ports.listen(stack, host, port, make_protocol, terms)
    except StackAway as error:
        raise AddressAway(f"cannot listen on {address((host, port))}: {error}") from error
    except (OSError, UnicodeError) as error:
        raise not_listening(host, port, error) from error


@dataclass(frozen=True)
class _Lent(Certificate):
    """A certificate that a port of the stack has a copy of."""

    listener: ports.Listener

    def serve_file(self) -> None:
        """As ever, there as well."""
        super().serve_file()
        try:
            self.listener.renew(self.terms)
        except OSError as error:
            raise TLSError(f"the network stack does not take {self.file}: {error}") from error


def as_served(listener: Listener, certificate: Certificate | None) -> Certificate | None:
    """The certificate of an open port, the stack's or another, to be renewed wherever it is."""
    if certificate is None or not isinstance(listener, ports.Listener):
        return certificate
    return _Lent(**vars(certificate), listener=listener)


async def connect(
    stack: str,
    host: str,
    port: int,
    on_message: Callable[[FramedProtocol, Message], None],
    on_closed: Callable[[FramedProtocol, str | None], None],
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
    trust: Trust | None = None,
) -> FramedProtocol:
    """Connect as an edge, by the stack; the caller then sends Hello.

    Raises ConnectionError with a sentence if nobody answers there within timeout_s.
    """
    protocol = FramedProtocol(Role.EDGE, on_message, on_closed, timeout_s)
    terms = trust.terms(host) if trust else ""
    try:
        await asyncio.wait_for(ports.connect(stack, host, port, protocol, terms), timeout_s)
    except asyncio.TimeoutError:
        sentence = f"no answer within {timeout_s:g} s"
    except (OSError, UnicodeError) as error:
        sentence = _sentence(error)
    else:
        return protocol
    raise ConnectionError(f"cannot connect to {address((host, port))}: {sentence}")


def _sentence(error: OSError | UnicodeError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, UnicodeError):
        return "this is not the name of a host"
    return error.strerror or str(error)
