"""An answer while it is written and afterwards, for readers in any thread and any event loop.

The edge's own loop writes it, as fast as the server lets it and whether it is read or not; readers
follow. Knows no tokenizer and no connection.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from threading import Lock, get_ident
from typing import NamedTuple

from runtime.edge.answer_text import Piece
from runtime.edge.resume import FinishReason
from runtime.edge.statistics import Statistics


class TokenLogprob(NamedTuple):
    """What the model thought of a token: natural logarithms of probabilities.

    Of its own distribution, before penalties, biases, constraint and temperature.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """Ids and log-probabilities of the likeliest tokens in its place, likeliest first."""


class Stream:
    """What has come of an answer. One thread writes it, any number of readers wait for more."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.statistics = Statistics()
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.ended = False
        self._lock = Lock()
        self._waiting: list[tuple[int, Future[None]]] = []

    def add(
        self,
        pieces: Sequence[Piece],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """Append what a round brought; nothing once the answer has ended."""
        with self._lock:
            if not self.ended:
                self.pieces += pieces
                self.tokens += tokens
                self.logprobs += logprobs
        if pieces:  # tokens alone may be the beginning of a character or of a stop string
            self._wake()

    def end(self, writing: "Future[FinishReason]") -> None:
        """Note how the writing ended: with a reason, with an error, or because it was cancelled."""
        with self._lock:
            try:
                self.finish_reason = writing.result()
            except CancelledError:
                self.finish_reason = "cancelled"
            except BaseException as error:  # for the readers to raise
                self.error = error
            self.ended = True
        self._wake()

    def more(self, seen: int) -> "Future[None]":
        """Done when there are more than `seen` pieces, or when no more will come."""
        future: Future[None] = Future()
        with self._lock:
            if self._is_due(seen):
                future.set_result(None)
            else:
                self._waiting.append((seen, future))
        return future

    def _is_due(self, seen: int) -> bool:
        return self.ended or len(self.pieces) > seen

    def _wake(self) -> None:
        with self._lock:
            woken = [future for seen, future in self._waiting if self._is_due(seen)]
            self._waiting = [waiting for waiting in self._waiting if not self._is_due(waiting[0])]
        for future in woken:
            if future.set_running_or_notify_cancel():
                future.set_result(None)


class _Answer:
    """What both forms of an answer have."""

    def __init__(
        self, stream: Stream, writing: "Future[FinishReason]", on_read: Callable[[], None]
    ) -> None:
        """`on_read` is called when a reader has had all of an answer that was not cancelled."""
        self._stream, self._writing, self._on_read = stream, writing, on_read
        writing.add_done_callback(stream.end)

    @property
    def tokens(self) -> list[int]:
        """The token ids so far; one that ended the text, and has none, is the last of them."""
        return list(self._stream.tokens)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Of each of the `tokens`, where they were asked for; otherwise none."""
        return list(self._stream.logprobs)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended: "stop" (the model or a stop string), "length" or "cancelled".

        None while it is being written, and where it failed.
        """
        return self._stream.finish_reason

    @property
    def statistics(self) -> Statistics:
        """What it has taken so far."""
        return self._stream.statistics

    def cancel(self) -> None:
        """End it here and on the server. Returns at once; nothing happens where it has ended."""
        self._writing.cancel()

    def _from(self, seen: int) -> list[Piece]:
        """The pieces behind the first `seen`; where none will come, raises why if it failed."""
        pieces = self._stream.pieces[seen:]
        if not pieces:
            if self._stream.error is not None:
                raise self._stream.error
            if self.finish_reason != "cancelled":
                self._on_read()
        return pieces


class Answer(_Answer):
    """The answer to a prompt. Iterate over its pieces of text as they come, or take the `text`.

    Leaving the iteration early cancels the answer on the server. Every iteration begins with the
    first piece. Raises ServerError where the server refuses it or is gone for too long, and
    TimeoutError after `timeout_s`.
    """

    def __iter__(self) -> Iterator[Piece]:
        seen = 0
        try:
            while True:
                self._stream.more(seen).result()
                pieces = self._from(seen)
                if not pieces:
                    return
                yield from pieces
                seen += len(pieces)
        finally:
            self.cancel()

    @property
    def text(self) -> str:
        """The whole text; waits until the answer has ended."""
        return "".join(self)


class AsyncAnswer(_Answer):
    """The same for `async for`, and `await answer.text`."""

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with aclosing(self.batches()) as batches:
            async for pieces in batches:
                for piece in pieces:
                    yield piece

    async def batches(self) -> AsyncGenerator[list[Piece], None]:
        """The pieces as they come, those that came together in one list."""
        seen = 0
        try:
            while True:
                await _done(self._stream.more(seen))
                pieces = self._from(seen)
                if not pieces:
                    return
                yield pieces
                seen += len(pieces)
        finally:
            self.cancel()

    @property
    async def text(self) -> str:
        """The whole text, when the answer has ended."""
        return "".join([piece async for piece in self])


async def _done(future: "Future[None]") -> None:
    """`asyncio.wrap_future`, which wakes its loop by a system call even from within that loop."""
    if future.done():
        return
    loop, reader = asyncio.get_running_loop(), get_ident()
    here = loop.create_future()

    def settle() -> None:
        if not here.done():
            here.set_result(None)

    def wake(future: "Future[None]") -> None:
        if get_ident() == reader:
            settle()
        else:
            with suppress(RuntimeError):  # that loop has been closed
                loop.call_soon_threadsafe(settle)

    future.add_done_callback(wake)
    try:
        await here
    finally:
        future.cancel()  # nothing happens where it is done
