"""A connection within one process: two protocols joined in memory as a pair of sockets joins them.

Both ends belong to one event loop. What one end writes reaches the other in a later turn of the
loop, in order; so neither is ever called from within a call of its own. Knows no messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.messages import Message
from runtime.wire.states import Role
from runtime.wire.tcp import FramedProtocol

PLACE = "this process"
# Of what an end sends, so much arrives in one turn of the loop, which has others to serve between.
# Each verdict wakes whoever writes that answer; about thirty have room.
TURN_BYTES = {Role.SERVER: 1024, Role.EDGE: 64 * 1024}
# Who is slow here is this process, with more to do than it can. Cut as a slow edge is, a user would
# lose all answers at once; so they come late instead.
MOST_WAITING_BYTES = 8 * 1024 * 1024


def join(
    server: FramedProtocol,
    on_message: Callable[[FramedProtocol, Message], None],
    on_closed: Callable[[FramedProtocol, str | None], None],
    certificate: bytes = NO_CERTIFICATE,
) -> FramedProtocol:
    """An edge's protocol, connected to the protocol of a server; the caller then sends Hello.

    certificate: the hash of the one that the server has for others; proofs are bound to it here
    too. To be called in the loop that both belong to.
    """
    edge = FramedProtocol(Role.EDGE, on_message, on_closed)
    mine, other = _End(edge, certificate), _End(server, certificate)
    mine.other, other.other = other, mine
    server.connection_made(other)
    edge.connection_made(mine)
    return edge


class _End(asyncio.Transport):
    """The transport of one protocol; what it writes waits here for the other one."""

    other: _End

    def __init__(self, protocol: FramedProtocol, certificate: bytes) -> None:
        told = {"certificate": certificate, "most_waiting_bytes": MOST_WAITING_BYTES}
        super().__init__({"peername": PLACE, **told})
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._turn_bytes = TURN_BYTES[protocol.connection.role]
        self._waiting = bytearray()
        self._has_turn = False  # in the loop, soon
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._waiting += data
            self._ask_for_turn()

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._ask_for_turn()

    def abort(self) -> None:
        self._waiting.clear()
        self.close()

    def _ask_for_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._has_turn = False
        data = bytes(self._waiting[: self._turn_bytes])
        del self._waiting[: self._turn_bytes]
        if data and not self.other._closing:
            try:
                self.other._protocol.data_received(data)
            except BaseException:  # of which asyncio tells; as on a socket, the connection ends
                self.other.abort()
                raise
        if self._waiting:
            self._ask_for_turn()
        elif self._closing:
            self._end()

    def _end(self) -> None:
        self._protocol.connection_lost(None)
        if not self.other._closing:
            self.other._protocol.eof_received()
            self.other.close()
