"""A relay that does to bytes what bad links do: late, in slices, slowly, flipped, or not at all.

It knows no frames. What it does is counted in bytes, not in time, so a run can be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """What happens to a connection."""

    RESET = auto()  # both ends learn it
    HALF_OPEN = auto()  # nobody learns anything: bytes vanish, and so do the ends' words
    FLIP = auto()  # a bit of one byte
    TELL = auto()  # nothing; somebody is told


@dataclass(frozen=True)
class Fault:
    """It strikes before byte `at_bytes` that goes up (to the server) or down (to the edge)."""

    kind: Kind
    up: bool
    at_bytes: int


@dataclass(frozen=True)
class Shape:
    """What is done to every byte of every connection."""

    delay_s: float = 0.0
    piece_bytes: int = 65_536
    bytes_per_s: float = 0.0  # 0 is no limit


class Proxy:
    """Connections are struck by `faults` in their order, one each; later ones are left alone."""

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
        fault = self._faults[self.connections] if self.connections < len(self._faults) else None
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        relay = _Relay(self, fault, (writer, up_writer))
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


@dataclass
class _Relay:
    """One connection through the proxy."""

    proxy: Proxy
    fault: Fault | None
    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    vanishing: bool = False

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, going_up: bool
    ) -> None:
        passed_bytes, shape = 0, self.proxy._shape
        with suppress(ConnectionError):
            while data := await reader.read(shape.piece_bytes):
                if shape.delay_s or shape.bytes_per_s:
                    late_s = len(data) / shape.bytes_per_s if shape.bytes_per_s else 0.0
                    await asyncio.sleep(shape.delay_s + late_s)
                fault = self.fault
                if fault and fault.up is going_up and passed_bytes + len(data) >= fault.at_bytes:
                    data = self._strike(data, fault.at_bytes - passed_bytes - 1)
                passed_bytes += len(data)
                if not self.vanishing:
                    writer.write(data)
                    await writer.drain()
            if self.vanishing:
                await asyncio.Event().wait()  # the end of a stream vanishes as well
            writer.write_eof()

    def _strike(self, data: bytes, index: int) -> bytes:
        """What is left of the data; the fault strikes at its byte `index`."""
        fault, self.fault = self.fault, None
        self.proxy.strike(fault)
        match fault.kind:
            case Kind.RESET:
                for end in self.ends:
                    end.transport.abort()
            case Kind.HALF_OPEN:
                self.vanishing = True
            case Kind.FLIP:
                return data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :]
        return data
