"""A connection by the daemon as an asyncio transport: protocols need not know it from a socket."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from runtime.stack.attachment import to_text

if TYPE_CHECKING:
    from runtime.stack.attachment import Attachment, Event

# csrc/stack/element.h, Status
REASONS = {
    200: "the connection was moved to another stack",
    201: "the server speaks no TLS: leave --tls out, or ask its operator for a certificate",
    202: "its certificate is not trusted",
    203: "no TLS connection",
    204: "this specedge-stack was built without OpenSSL, so it has no TLS",
    205: "certificate, key or authority cannot be used",
}


def failure(status: int) -> OSError:
    """Why the daemon closed a connection."""
    if status in REASONS:
        return ConnectionError(REASONS[status])
    return OSError(status, os.strerror(status))


class StackTransport(asyncio.Transport):
    """A connection that stands. Of what is written, the daemon holds a window; the rest waits here.

    Extra information: peername (host, port), certificate (of the server, on the edge), and
    is_direct, whether it is a memory shared with a process of this host.
    """

    def __init__(self, attachment: Attachment, event: Event, protocol: asyncio.Protocol) -> None:
        """event: CONNECTED or ACCEPTED."""
        _, self._slot, address, port, _, certificate, is_direct = event
        peer = {"peername": (to_text(address), port), "is_direct": is_direct}
        super().__init__(peer | ({"certificate": certificate} if certificate else {}))
        self._attachment, self._guest, self._kind = attachment, attachment.guest, attachment.kind
        self._protocol = protocol
        self._waiting = bytearray()
        self._closing = self._ends = self._is_cut = self._gone = False
        attachment.ends[self._slot] = self
        protocol.connection_made(self)

    def heard(self, event: Event) -> None:
        """What has happened, in the event loop."""
        match event:
            case (self._kind.DATA, _, data):
                if not self._closing:
                    self._protocol.data_received(data)
            case (self._kind.WRITABLE, _):
                self._write_waiting()
            case (self._kind.END, _):
                if not self._closing and not self._protocol.eof_received():
                    self.close()
            case (self._kind.CLOSED, _, status):
                self._end(failure(status) if status and not self._closing else None)

    def lost(self) -> None:
        """The daemon has gone."""
        self._end(ConnectionError("the network stack of this host has gone"))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._ends:
            return
        if self._waiting:
            self._waiting += data
            return
        taken = self._attachment.put(self._slot, data)
        if taken < len(data):
            self._waiting += memoryview(data)[taken:]

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        taken = self._attachment.put(self._slot, self._waiting)
        del self._waiting[:taken]
        if not self._waiting:
            self._finish()

    def _finish(self) -> None:
        """Once everything is written: close, or end, where that is wanted."""
        if self._gone or self._is_cut:
            return
        if self._closing:
            self._guest.close(self._slot)
        elif self._ends:
            self._guest.end(self._slot)

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closing and not self._ends:
            self._ends = True
            if not self._waiting:
                self._finish()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._waiting:
                self._finish()

    def abort(self) -> None:
        """At once, whatever the daemon is doing."""
        if self._gone or self._is_cut:
            return
        self._closing = self._is_cut = True
        self._waiting.clear()
        self._guest.abort(self._slot)
        asyncio.get_running_loop().call_soon(self._end, None)
        del self._attachment.ends[self._slot]
        self._attachment.detach_if_idle()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def pause_reading(self) -> None:
        if not self._closing:  # else the slot may be another connection's
            self._guest.pause(self._slot)

    def resume_reading(self) -> None:
        if not self._closing:
            self._guest.resume(self._slot)

    def _end(self, error: Exception | None) -> None:
        self._closing = self._gone = True
        self._waiting.clear()
        self._protocol.connection_lost(error)
