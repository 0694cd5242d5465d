"""The edge's loop: send the prompt, then draft, send, receive, commit, until the text ends.

Two activities: the event loop reads and writes the socket, one worker thread runs the draft model.
Deals in token ids only; text is the business of `client.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from runtime.edge.drafter import Drafter, TreeShape
from runtime.tree import OrderedTree
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol, connect

PROMPT_FRAME_TOKENS = 4096  # small enough that other requests' drafts get through between


class ServerError(ConnectionError):
    """The server refused or went away; the message is a sentence for the user."""


@dataclass(frozen=True)
class Sampling:
    """How the target's tokens are drawn. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drafting:
    """How the edge predicts them; `coupling` uses the noise they will be drawn with."""

    shape: TreeShape
    coupling: bool = True


@dataclass(frozen=True)
class Round:
    """What one verdict brought: the accepted draft tokens, then the target's own."""

    tokens: tuple[int, ...]
    drafted: int  # nodes sent
    verdict: wire.Verdict


class Link:
    """A connection to the server, greeted and ready for requests."""

    def __init__(self) -> None:
        self.welcome: wire.Welcome | None = None
        self._peer: FramedProtocol | None = None
        self._greeted: asyncio.Future[wire.Welcome] = asyncio.get_running_loop().create_future()
        self._inboxes: dict[int, asyncio.Queue[wire.Message]] = {}
        self._last_session = 0
        self._lost: str | None = None
        self._gone = asyncio.Event()

    @classmethod
    async def open(cls, host: str, port: int, hello: wire.Hello) -> "Link":
        """Connect and greet. Raises ServerError."""
        link = cls()
        try:
            link._peer = await connect(host, port, link._on_message, link._on_closed)
        except ConnectionError as error:
            raise ServerError(str(error)) from error
        link._peer.send(hello)
        link.welcome = await link._greeted
        return link

    @property
    def bytes_sent(self) -> int:
        """Bytes of all frames sent, headers included."""
        return self._peer.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of all frames received, headers included."""
        return self._peer.bytes_received

    @property
    def alive(self) -> bool:
        """False once the connection is gone."""
        return self._lost is None

    def request(self, prompt: Sequence[int], sampling: Sampling) -> "Request":
        """Send OPEN and the prompt."""
        self._check_alive()
        self._last_session = self._last_session % 65535 + 1
        number = self._last_session
        self._inboxes[number] = asyncio.Queue()
        self._peer.send(
            wire.Open(
                session=number,
                seed=sampling.seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                prompt_tokens=len(prompt),
                stop_ids=sampling.stop_ids,
            )
        )
        for start in range(0, len(prompt), PROMPT_FRAME_TOKENS):
            self._peer.send(wire.Prompt(number, tuple(prompt[start : start + PROMPT_FRAME_TOKENS])))
        return Request(self, number)

    async def close(self) -> None:
        """Hang up, when everything sent is written."""
        self._peer.close()
        await self._gone.wait()

    def _send(self, message: wire.Message) -> None:
        self._check_alive()
        self._peer.send(message)

    async def _receive(self, number: int) -> wire.Message:
        self._check_alive()
        return await self._inboxes[number].get()

    def _release(self, number: int, finished: bool) -> None:
        """Forget a request; one that is still running is cancelled on the server."""
        if self._inboxes.pop(number, None) is not None and not finished and self._lost is None:
            self._peer.send(wire.Close(number))

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise ServerError(self._lost)

    def _on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        match message:
            case wire.Welcome():
                self._greeted.set_result(message)
            case wire.Error(session=0):
                self._lose(message.sentence)
            case wire.Verdict() | wire.Error() if message.session in self._inboxes:
                self._inboxes[message.session].put_nowait(message)

    def _on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        self._lose(reason or "the connection is closed")
        self._gone.set()

    def _lose(self, sentence: str) -> None:
        """Tell everyone who waits."""
        if self._lost is not None:
            return
        self._lost = sentence
        if not self._greeted.done():
            self._greeted.set_exception(ServerError(sentence))
        for number, inbox in self._inboxes.items():
            inbox.put_nowait(wire.Error(number, wire.ErrorCode.INTERNAL, False, sentence))


@dataclass
class Request:
    """One request on a link: drafts out, verdicts in."""

    link: Link
    number: int
    round: int = 0
    finished: bool = False

    def send(self, base: int, tree: OrderedTree) -> None:
        """Send the draft of the next round, made after `base` tokens."""
        self.round += 1
        self.link._send(wire.Draft(self.number, self.round, base, tree.tokens, tree.parents))

    async def verdict(self) -> wire.Verdict:
        """The verdict of the round in flight. Raises ServerError."""
        message = await self.link._receive(self.number)
        if isinstance(message, wire.Error):
            self.finished = True
            raise ServerError(message.sentence)
        self.finished = message.finish is not wire.Finish.NONE
        return message

    def close(self) -> None:
        """Give the request up, if it is still running."""
        self.link._release(self.number, self.finished)


async def generate(
    link: Link,
    drafter: Drafter,
    prompt: Sequence[int],
    sampling: Sampling,
    drafting: Drafting,
    draft_thread: Executor,
) -> AsyncGenerator[Round, None]:
    """The whole exchange for one prompt, a `Round` for each verdict.

    Raises ServerError. Leaving the iteration early cancels the request on the server.
    """
    loop = asyncio.get_running_loop()
    limit = min(len(prompt) + sampling.max_tokens, link.welcome.max_context)
    request = link.request(prompt, sampling)
    try:
        await loop.run_in_executor(
            draft_thread,
            drafter.start,
            prompt,
            drafting.shape,
            sampling.seed,
            sampling.temperature if drafting.coupling else 0.0,
        )
        tree = OrderedTree()
        while True:
            verdict = await request.verdict()
            path = tree.path(verdict.node)
            drafter.commit(tree, verdict.node, verdict.bonus)
            tokens = (*(tree.tokens[node - 1] for node in path), verdict.bonus)
            yield Round(tokens, len(tree), verdict)
            if request.finished:
                return
            remaining = limit - len(drafter.context)
            tree = await loop.run_in_executor(
                draft_thread, drafter.draft, link.welcome.max_nodes, remaining - 1
            )
            request.send(len(drafter.context), tree)
    finally:
        request.close()
