"""One guest of the daemon in an event loop, and whom each event is for.

It detaches when the last of those who use it has gone. Knows no protocols.
"""

from __future__ import annotations

import asyncio
from collections import deque
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from runtime.stack._stack import Guest

Event = tuple[Any, ...]


class StackAway(ConnectionError):
    """No daemon is there; it may be started yet."""


class End(Protocol):
    """Who hears of a slot: a connection, a port, or who waits for one."""

    def heard(self, event: Event) -> None:
        """Something has happened; CLOSED is the last."""

    def lost(self) -> None:
        """The daemon has gone, and the slot with it."""

    def abort(self) -> None:
        """It has failed in the middle of an event."""


class Attachment:
    """A guest; `ends` says who hears of which slot."""

    def __init__(self, path: str) -> None:
        """Attach to the daemon at a path. Raises ConnectionError with a sentence.

        StackAway, which is one, says that no daemon is there now.
        """
        try:
            from runtime.stack import _stack
        except ImportError as error:
            raise ConnectionError(f"--stack {path} cannot be used here: {error}") from error
        try:
            self.guest: Guest = _stack.Guest(path)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            is_away = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            kind = StackAway if is_away else ConnectionError
            raise kind(f"no specedge-stack at --stack {path}: {reason}") from error
        self.kind = _stack.Kind
        self.ends: dict[int, End] = {}
        self._events: deque[Event] = deque()
        self._is_detached = self._has_unshown = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.guest.fileno(), self._poll)

    def put(self, slot: int, data: bytes | bytearray | memoryview) -> int:
        """Bytes taken to be sent: with all that is written in this turn of the loop, one bell."""
        if not self._has_unshown:
            self._has_unshown = True
            self._loop.call_soon(self._show)
        return self.guest.put_frame(slot, data)

    def _show(self) -> None:
        self._has_unshown = False
        self.guest.flush()

    def detach_if_idle(self) -> None:
        """Leave the daemon, where nobody uses it any more."""
        if not self.ends and not self._is_detached:
            self._is_detached = True
            self._loop.remove_reader(self.guest.fileno())
            self.guest.detach()

    def _poll(self) -> None:
        self._events.extend(self.guest.poll())
        while self._events:
            event = self._events.popleft()
            if event[0] == self.kind.LOST:
                self._lose()
                return
            self._tell(event)

    def _tell(self, event: Event) -> None:
        kind, slot = event[0], event[1]
        # whoever listens hears of those that come
        end = self.ends.get(event[4] if kind == self.kind.ACCEPTED else slot)
        if kind == self.kind.CLOSED:
            self.ends.pop(slot, None)
        if end is None:
            return
        try:
            end.heard(event)
        except BaseException:  # of which asyncio tells; as on a socket, the connection ends
            end.abort()
            if self._events:
                self._loop.call_soon(self._poll)
            raise
        finally:
            self.detach_if_idle()

    def _lose(self) -> None:
        self._events.clear()
        ends, self.ends = self.ends, {}
        self.detach_if_idle()
        for end in ends.values():
            end.lost()


def to_bytes(host: str) -> bytes:
    """A numeric address as the daemon takes it. Raises ValueError."""
    address = ip_address(host.partition("%")[0])
    packed = address.packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def to_text(address: bytes) -> str:
    """An address as people write it."""
    known = IPv6Address(address)
    return str(known.ipv4_mapped or known)
