"""A link that can be measured: how long a message takes to the server and back, and how much fits.

For a link without requests of its own; what a request costs is measured by asking one.
"""

import asyncio
import time

from runtime.edge.net.asking import opening
from runtime.edge.net.link import PROMPT_FRAME_TOKENS, Credentials, Link
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol


class ProbedLink(Link):
    """A `Link` that times its own Pings."""

    def __init__(self, hello: wire.Hello, credentials: Credentials) -> None:
        super().__init__(hello, credentials)
        self._pong: asyncio.Future[float] | None = None

    async def ping(self) -> float:
        """Seconds until the server has handled all that was sent, and said so. ServerError."""
        self._check_alive()
        self._pong = asyncio.get_running_loop().create_future()
        started_s = time.monotonic()
        self._peer.send(wire.Ping(1))
        return await self._pong - started_s

    async def upload(self, n_tokens: int) -> tuple[int, float]:
        """Send a prompt of so many tokens, one less than was announced, so that nobody reads it.

        Returns the bytes, and the seconds until the server has them all. Raises ServerError.
        """
        number, sent_bytes = self._free_number(), self.bytes_sent
        self._last_number = number
        self._peer.send(opening(Sampling(max_tokens=1), number, n_tokens + 1, max_nodes=0))
        started_s = time.monotonic()
        for start in range(0, n_tokens, PROMPT_FRAME_TOKENS):
            tokens = (0,) * min(PROMPT_FRAME_TOKENS, n_tokens - start)
            self._peer.send(wire.Prompt(number, tokens))
        await self.ping()
        seconds = time.monotonic() - started_s
        self._peer.send(wire.Close(number))
        return self.bytes_sent - sent_bytes, seconds

    def _on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        super()._on_message(peer, message)
        if isinstance(message, wire.Pong) and self._pong is not None and not self._pong.done():
            self._pong.set_result(time.monotonic())

    def _lose(self, sentence: str, code: wire.ErrorCode | None = None) -> None:
        super()._lose(sentence, code)
        if self._pong is not None and not self._pong.done():
            self._pong.set_exception(self._why_lost())
