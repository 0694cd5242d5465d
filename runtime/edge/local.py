"""An edge in the process and event loop of its server, for clients that have none of their own.

It drafts nothing, and joins the server in memory; for the rest it is an edge like others, of a user
that the server knows, and is held to the same limits. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.config import EdgeConfig
from runtime.edge.answer import AsyncAnswer, Stream
from runtime.edge.draft.speculation import Commit
from runtime.edge.loop import Round
from runtime.edge.net.link import Link
from runtime.edge.net.uplink import Uplink
from runtime.edge.options import RequestOptions, of_request
from runtime.edge.prompts import Prompt, Prompts
from runtime.edge.resume import FinishReason, Transcript
from runtime.edge.writer import Answers
from runtime.tree import DraftTree, OrderedTree
from runtime.wire import messages as wire

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.model.tokenizer import Tokenizer
    from runtime.wire.tcp import FramedProtocol

NOTHING_SENT, NOTHING_GROWN = OrderedTree(), DraftTree(0)


@dataclass(frozen=True)
class LocalServer:
    """A server as its local edges see it.

    welcome      what it tells every edge that it admits
    certificate  the hash of its certificate of now, empty without one
    new_peer     a protocol for one more edge
    unready      why no requests are taken; empty if they are
    adapters     names of those that its model has
    """

    tokenizer: Tokenizer
    welcome: wire.Welcome
    certificate: Callable[[], bytes]
    new_peer: Callable[[], FramedProtocol]
    unready: Callable[[], str]
    adapters: tuple[str, ...] = ()


class LocalEdge(Answers):
    """One user's. Connected while it has something to write."""

    def __init__(
        self, server: LocalServer, user: str = "", token: bytes = b"", chat_template: str = ""
    ) -> None:
        """To be made on the server's event loop. `user` and `token` are empty where nobody is asked
        for them; chat_template is a file, empty for the target's own."""
        super().__init__()
        self.server = server
        uplink = _Uplink(server, user, token)
        self.uplink, self.prompts = uplink, Prompts(server.tokenizer, uplink)
        self._config = EdgeConfig(
            draft=server.welcome.model,
            max_budget=0,
            reconnect_s=0,
            chat_template=chat_template,
        )
        self._loop = asyncio.get_running_loop()

    @property
    def model(self) -> str:
        """The target's name."""
        return self.server.welcome.model

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of those that the target has."""
        return self.server.adapters

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.server.welcome.max_context

    @property
    def rtt_s(self) -> float:
        """There is no way."""
        return 0.0

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's."""
        return self.server.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The one that conversations are written by."""
        assert self.prompts is not None, "made with them"
        return self.prompts.chat_template(self._config)

    def unready(self) -> str:
        """Why the server takes no requests; empty if it does."""
        return self.server.unready()

    def encode(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> list[int]:
        """As `Edge.encode`, in any thread."""
        assert self.prompts is not None, "made with them"
        return self.prompts.encode(prompt, of_request(self._config, options))

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """As `Edge.tokenize`, in any thread."""
        assert self.prompts is not None, "made with them"
        return self.prompts.tokenize(text, special)

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> AsyncAnswer:
        """As `AsyncEdge.generate`, in any thread: a long prompt takes time to make ids of."""
        assert self.prompts is not None, "made with them"
        config, stream = of_request(self._config, options), Stream()
        transcript = self.prompts.transcript(prompt, config)
        writing = self._answer(transcript, config, stream)
        running = asyncio.run_coroutine_threadsafe(writing, self._loop)
        return AsyncAnswer(stream, running, lambda: None)

    async def _answer(
        self, transcript: Transcript, config: EdgeConfig, stream: Stream
    ) -> FinishReason:
        assert self.uplink is not None, "made with it"
        try:
            return await self.write(transcript, config, stream)
        finally:
            if not self.writing:  # an edge that nobody needs takes no other's place
                await self.uplink.close()

    async def _rounds(
        self,
        uplink: Uplink,
        transcript: Transcript,
        config: EdgeConfig,
        on_reading: Callable[[wire.Reading], None],
    ) -> AsyncGenerator[Round, None]:
        link = await uplink.link()
        request = link.request(*transcript.rest, max_nodes=0, on_reading=on_reading)
        try:
            while not request.finished:
                verdict = await request.verdict()
                gained = Commit((verdict.bonus,), NOTHING_SENT, NOTHING_GROWN, 0, 0, hit=False)
                yield Round(verdict, gained, 0, 0, logprobs=request.logprobs)
        finally:
            request.close()


class _Uplink(Uplink):
    """The way to the server in memory."""

    def __init__(self, server: LocalServer, user: str, token: bytes) -> None:
        welcome = server.welcome
        hello = wire.Hello(
            wire.OFFERS_VERSION,  # it makes none, and reads what comes many tokens a step
            welcome.vocabulary_size,
            welcome.vocabulary_hash,
            welcome.model,
            user,
            template_hash=welcome.template_hash,
        )
        super().__init__("", 0, hello)
        self.welcome = welcome
        self._server, self._hello, self._token = server, hello, token

    async def _open(self) -> Link:
        server = self._server
        return await Link.join(server.new_peer(), self._hello, self._token, server.certificate())
