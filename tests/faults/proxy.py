"""A relay that does to bytes what bad links do: late, in slices, slowly, flipped, or not at all.

When a fault strikes is counted in bytes, or seen in the frames (`moments.py`), or said by whoever
calls `strike_now`; never timed, so a run can be repeated.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.faults.moments import SIGHTS, Moment, Watch

FLAGS_OFFSET = 3  # of a frame: the byte that must be zero
VOCABULARY_SIZE = 260


class Kind(Enum):
    """What happens to a connection."""

    CUT = auto()  # both ends are told in order
    RESET = auto()  # both ends learn it
    HALF_OPEN = auto()  # nobody learns anything: bytes vanish, and so do the ends' words
    ONE_WAY = auto()  # the same in the fault's direction alone
    STALL = auto()  # nothing passes for a while, and nothing is lost
    SHAPE = auto()  # it goes on as a worse link
    FLIP = auto()  # a bit of one byte
    TELL = auto()  # nothing; somebody is told


@dataclass(frozen=True)
class Shape:
    """What is done to every byte of every connection."""

    delay_s: float = 0.0
    piece_bytes: int = 65_536
    bytes_per_s: float = 0.0  # 0 is no limit
    jitter_s: float = 0.0

    def late_s(self, count_bytes: int, rng: random.Random) -> float:
        """How long a piece is kept."""
        slow_s = count_bytes / self.bytes_per_s if self.bytes_per_s else 0.0
        return self.delay_s + rng.uniform(0, self.jitter_s) + slow_s


@dataclass(frozen=True)
class Fault:
    """It strikes before byte `at_bytes` that goes up (to the server) or down (to the edge).

    With a moment it strikes then instead.
    """

    kind: Kind
    up: bool
    at_bytes: int = 0
    moment: Moment | None = None
    shape: Shape = field(default_factory=Shape)  # of the link from then on
    stall_s: float = 0.2


class Proxy:
    """Connections are struck by `faults` in their order, one each; later ones are left alone.

    One that does not get through, as its target is down, is none.
    """

    def __init__(
        self,
        faults: Sequence[Fault | None] = (),
        shape: Shape | None = None,
        on_fault: Callable[[Fault], None] = lambda fault: None,
    ):
        self.address = ("127.0.0.1", 0)
        self.struck: list[Fault] = []
        self.connections = 0
        self._faults, self._shape, self._on_fault = list(faults), shape or Shape(), on_fault
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: list[_Relay] = []
        self._target = ("127.0.0.1", 0)

    @asynccontextmanager
    async def before(self, host: str, port: int) -> AsyncIterator["Proxy"]:
        """Listen, and relay to host:port."""
        self._target = (host, port)
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = listener.sockets[0].getsockname()[:2]
        try:
            yield self
        finally:
            listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        fault = self._faults[self.connections] if self.connections < len(self._faults) else None
        self.connections += 1
        relay = _Relay(self, fault, (writer, up_writer), self._shape)
        self._relays.append(relay)
        up = relay.pump(reader, up_writer, going_up=True)
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.gather(up, relay.pump(up_reader, writer, going_up=False))
        finally:
            for end in (writer, up_writer):
                end.transport.abort()

    def strike(self, fault: Fault) -> None:
        """Count a fault, and tell of it."""
        self.struck.append(fault)
        self._on_fault(fault)

    def strike_now(self) -> None:
        """Let the fault of the newest connection strike, if it has not."""
        if self._relays and self._relays[-1].fault:
            self._relays[-1].strike()


class _Relay:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        fault: Fault | None,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        shape: Shape,
    ) -> None:
        self.proxy, self.fault, self.ends, self.shape = proxy, fault, ends, shape
        self._vanishing: set[bool] = set()  # directions
        self._passed_bytes = {True: 0, False: 0}
        self._open = asyncio.Event()
        self._open.set()
        self._rng = random.Random(proxy.connections)
        sight = SIGHTS.get(fault.moment) if fault else None
        self._watch = Watch(sight, VOCABULARY_SIZE) if sight else None

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, going_up: bool
    ) -> None:
        """Relay one direction until its end; an end that breaks breaks the other as well."""
        try:
            while data := await reader.read(self.shape.piece_bytes):
                await asyncio.sleep(self.shape.late_s(len(data), self._rng))
                data, place = self._look(going_up, data)
                if place is not None:
                    await self._pass(writer, going_up, data[:place])
                    data = self._spoilt(data[place:])
                await self._pass(writer, going_up, data)
            if going_up in self._vanishing:
                await asyncio.Event().wait()  # the end of a stream vanishes as well
            writer.write_eof()
        except OSError:
            if not self._vanishing:
                for end in self.ends:
                    end.transport.abort()

    async def _pass(self, writer: asyncio.StreamWriter, going_up: bool, data: bytes) -> None:
        await self._open.wait()
        self._passed_bytes[going_up] += len(data)
        for start in range(0, len(data), self.shape.piece_bytes):
            if going_up not in self._vanishing:
                writer.write(data[start : start + self.shape.piece_bytes])
                await writer.drain()

    def _look(self, up: bool, data: bytes) -> tuple[bytes, int | None]:
        """What may pass now, and the place in it where the fault strikes."""
        fault = self.fault
        if self._watch is not None:
            if fault is None:  # it has struck: frames do not matter any more
                return self._watch.take_rest(up) + data, None
            return self._place_in_frames(up, data)
        if fault is None or fault.moment or fault.up is not up:
            return data, None
        place = fault.at_bytes - self._passed_bytes[up] - 1
        return data, place if place < len(data) else None

    def _place_in_frames(self, up: bool, data: bytes) -> tuple[bytes, int | None]:
        data, start = self._watch.feed(up, data)
        if start is None:
            return data, None
        if self.fault.kind is Kind.FLIP:
            return data, start + FLAGS_OFFSET
        halfway = int.from_bytes(data[start : start + 2], "little") // 2
        return data, start + (halfway if self._watch.sight.halfway else 0)

    def _spoilt(self, data: bytes) -> bytes:
        """The data from where the fault strikes, as it leaves it."""
        flip = self.fault.kind is Kind.FLIP
        self.strike()
        return bytes([data[0] ^ 0x10]) + data[1:] if flip else data

    def strike(self) -> None:
        """Do what the fault does, and tell the proxy."""
        fault, self.fault = self.fault, None
        self.proxy.strike(fault)
        match fault.kind:
            case Kind.CUT:
                for end in self.ends:
                    end.close()
            case Kind.RESET:
                for end in self.ends:
                    _reset(end)
            case Kind.HALF_OPEN:
                self._vanishing = {True, False}
            case Kind.ONE_WAY:
                self._vanishing = {fault.up}
            case Kind.STALL:
                self._open.clear()
                asyncio.get_running_loop().call_later(fault.stall_s, self._open.set)
            case Kind.SHAPE:
                self.shape = fault.shape


def _reset(end: asyncio.StreamWriter) -> None:
    """Close so that the other side gets an RST rather than an end of stream."""
    link = end.get_extra_info("socket")
    with suppress(OSError):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()
