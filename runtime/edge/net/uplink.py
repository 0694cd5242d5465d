"""The way to the server: one link for all requests of this edge, opened anew when it broke.

A request dies with its link, and no message brings it back: `resume.py` asks for the rest of the
text in a new one. Knows no drafts and no text.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field

from runtime.edge.net.link import NO_CREDENTIALS, Credentials, Link, ServerError
from runtime.wire import messages as wire
from runtime.wire.messages import ErrorCode

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
# reasons of a server that may be gone in a moment
PASSING = (ErrorCode.BUSY, ErrorCode.DRAINING, ErrorCode.TIMEOUT)


class Uplink:
    """Gives a living link to whoever asks; only one is open at a time."""

    def __init__(
        self,
        host: str,
        port: int,
        hello: wire.Hello,
        credentials: Credentials = NO_CREDENTIALS,
        stack: str = "",
    ) -> None:
        self.opened = 0  # links, over all time
        self.welcome: wire.Welcome | None = None  # of the last of them
        self.template: wire.Template | None = None  # that came after it
        self._greeting = (host, port, hello, credentials, stack)
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._gone_bytes = [0, 0]  # sent and received over links that are gone

    async def link(self) -> Link:
        """The link, a new one if there is none that lives: one attempt. Raises ServerError."""
        async with self._opening:
            if self._link is None or not self._link.alive:
                await self.close()
                self._link = await self._open()
                self.welcome, self.template = self._link.welcome, self._link.template
                self.opened += 1
            return self._link

    async def _open(self) -> Link:
        return await Link.open(*self._greeting)

    async def close(self) -> None:
        """Hang up; the next request would open a new link."""
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()
            self._gone_bytes[0] += link.bytes_sent
            self._gone_bytes[1] += link.bytes_received

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that the server of the link has told of."""
        return self._link.adapters if self._link is not None else ()

    @property
    def rtt_s(self) -> float:
        """Of the link, as long as its greeting took; 0 where there is none."""
        return (self._link.rtt_s if self._link is not None else None) or 0.0

    @property
    def alive(self) -> bool:
        """Whether there is a link, as far as is known."""
        return self._link is not None and self._link.alive

    @property
    def bytes_sent(self) -> int:
        """Bytes of all frames sent, headers included, over all links."""
        return self._gone_bytes[0] + (self._link.bytes_sent if self._link else 0)

    @property
    def bytes_received(self) -> int:
        """Bytes of all frames received, headers included, over all links."""
        return self._gone_bytes[1] + (self._link.bytes_received if self._link else 0)


@dataclass
class Retries:
    """Waits that double, each drawn anew so that edges do not come back all at once.

    Source: full jitter as in "Exponential Backoff and Jitter" (AWS architecture blog, 2015).
    """

    total_s: float  # of all attempts, until one succeeds
    rng: random.Random = field(default_factory=random.Random)
    _until_s: float | None = None
    _wait_s: float = FIRST_WAIT_S

    @property
    def begun(self) -> bool:
        """Whether something failed since the last success."""
        return self._until_s is not None

    def next_wait_s(self, now_s: float) -> float | None:
        """How long to wait before the next attempt, None when the time is over."""
        if self._until_s is None:
            self._until_s = now_s + self.total_s
        if now_s >= self._until_s:
            return None
        wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_WAIT_S)
        return min(self.rng.uniform(0, wait_s), self._until_s - now_s)

    def succeeded(self) -> None:
        """Begin from the beginning next time."""
        self._until_s, self._wait_s = None, FIRST_WAIT_S

    async def wait(self, error: ServerError) -> None:
        """Wait after this failure; raises it again when the time is over."""
        wait_s = self.next_wait_s(time.monotonic())
        if wait_s is None:
            given_up = f" (given up after {self.total_s:g} s)" if self.total_s else ""
            raise ServerError(f"{error}{given_up}", error.code) from error
        await asyncio.sleep(wait_s)
