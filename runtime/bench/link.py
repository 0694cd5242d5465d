"""An emulated network link: a TCP proxy that delays bytes and limits their rate.

Half of the round trip is added in each direction, and each direction of a connection is a first-in
first-out pipe of a given rate. It is a proxy of byte streams, not of packets: there is no loss, no
congestion control and no limit to the queue; connecting itself is not delayed; and the two ends
acknowledge to the proxy, not to each other. It knows nothing of what it carries.
"""

import asyncio
import random
import selectors
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf, nextafter


@dataclass(frozen=True)
class Conditions:
    """What the link does to the bytes between an edge and the server. Raises ValueError."""

    rtt_s: float = 0.0
    up_bytes_per_s: float = inf  # edge to server
    down_bytes_per_s: float = inf
    jitter_s: float = 0.0  # each chunk is late by up to this much more, evenly spread

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_s < inf or not 0 <= self.jitter_s < inf:
            raise ValueError(f"delays must be finite and not negative, got {self}")
        if not min(self.up_bytes_per_s, self.down_bytes_per_s) > 0:
            raise ValueError(f"rates must be above zero, got {self}")

    def pipes(self) -> tuple["Pipe", "Pipe"]:
        """The two directions of a new connection: up and down."""
        one_way_s = self.rtt_s / 2
        return (
            Pipe(one_way_s, self.up_bytes_per_s, self.jitter_s),
            Pipe(one_way_s, self.down_bytes_per_s, self.jitter_s),
        )


@dataclass
class Pipe:
    """When the bytes of one direction arrive. Pure: the time is an argument."""

    delay_s: float
    bytes_per_s: float = inf
    jitter_s: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    _free_s: float = -inf  # when the last byte has left the sender
    _last_s: float = -inf  # when the last chunk arrives

    def arrival_s(self, now_s: float, n_bytes: int) -> float:
        """When the last of `n_bytes` bytes given to the pipe now comes out of it.

        Strictly later than all before, so that a queue ordered by time keeps the bytes in order.
        """
        self._free_s = max(now_s, self._free_s) + n_bytes / self.bytes_per_s
        late_s = self.chance.uniform(0.0, self.jitter_s)
        self._last_s = max(nextafter(self._last_s, inf), self._free_s + self.delay_s + late_s)
        return self._last_s


class _End(asyncio.Protocol):
    """One side of a connection: what arrives here leaves at the other side, later."""

    def __init__(self, pipe: Pipe, other: "_End | None" = None):
        self.pipe, self.other = pipe, other
        self._transport: asyncio.Transport | None = None
        self._received_all = self._sent_all = False

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None, "an end has its transport before anything else"
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a link carries streams"
        self._transport = transport
        if self.other is None:
            transport.pause_reading()  # until there is a way on

    def data_received(self, data: bytes) -> None:
        self._later(len(data), lambda other: other.transport.write(data))

    def eof_received(self) -> bool:
        self._received_all = True
        self._later(0, _End._end_sending)
        return not self._sent_all  # as long as the other direction is open

    def connection_lost(self, error: Exception | None) -> None:
        # what was sent before an orderly end still arrives
        self._later(0, lambda other: other.transport.abort() if error else other.transport.close())

    def _end_sending(self) -> None:
        self._sent_all = True
        # who has closed the other direction meanwhile may be gone, and connection_lost follows
        with suppress(OSError):
            self.transport.write_eof()
        if self._received_all:
            self.transport.close()

    def _later(self, n_bytes: int, act: Callable[["_End"], None]) -> None:
        def arrive() -> None:
            if self.other is not None and not self.other.transport.is_closing():
                act(self.other)

        loop = asyncio.get_running_loop()
        loop.call_at(self.pipe.arrival_s(loop.time(), n_bytes), arrive)


class _Link:
    """Listens on loopback and joins every connection to one to the target."""

    def __init__(self, target: tuple[str, int], conditions: Conditions):
        self.target, self.conditions = target, conditions
        self._joining: set[asyncio.Task[None]] = set()

    def accept(self) -> _End:
        up, down = self.conditions.pipes()
        near = _End(up)
        task = asyncio.get_running_loop().create_task(self._join(near, down))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return near

    async def _join(self, near: _End, down: Pipe) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, far = await loop.create_connection(lambda: _End(down, near), *self.target)
        except OSError:  # nobody there: the edge sees its connection break
            near.transport.abort()
            return
        near.other = far
        near.transport.resume_reading()


async def open_link(target: tuple[str, int], conditions: Conditions) -> asyncio.Server:
    """Listen on loopback, in this event loop, for connections to the target over the link."""
    link = _Link(target, conditions)
    return await asyncio.get_running_loop().create_server(link.accept, "127.0.0.1", 0)


@contextmanager
def emulated_link(address: str, conditions: Conditions) -> Iterator[str]:
    """host:port on loopback that leads to the server at `address` over the emulated link.

    Runs in a thread of its own. Raises OSError if no port can be had.
    """
    host, _, port = address.rpartition(":")
    # select() counts in microseconds where epoll, asyncio's choice, rounds up to milliseconds
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    target = host.strip("[]"), int(port)
    listener = loop.run_until_complete(open_link(target, conditions))
    thread = threading.Thread(target=loop.run_forever, name="link", daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
