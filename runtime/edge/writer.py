"""Answers as they are written: rounds come in, text, ids and statistics go out.

Several are written at the same time, over one uplink. To be called on its event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from runtime.config import EdgeConfig
from runtime.edge.answer import Stream, TokenLogprob
from runtime.edge.answer_text import AnswerText, Piece
from runtime.edge.loop import Round
from runtime.edge.net.link import ServerError
from runtime.edge.net.uplink import Uplink
from runtime.edge.prompts import Prompts
from runtime.edge.resume import FinishReason, Transcript
from runtime.edge.resume_file import ResumeFile
from runtime.model.text_stream import Spelled
from runtime.wire import messages as wire

REASONS: dict[wire.Finish, FinishReason] = {wire.Finish.STOP: "stop", wire.Finish.LENGTH: "length"}


class Writer:
    """Reads rounds of a transcript until its text ends."""

    def __init__(
        self,
        transcript: Transcript,
        stream: Stream,
        tokenizer: Spelled,
        uplink: Uplink,
        file: ResumeFile | None = None,
        on_round: Callable[[Round], None] = lambda round_: None,
    ) -> None:
        self._transcript, self._stream = transcript, stream
        self._uplink, self._file = uplink, file
        self._on_round = on_round
        self._text = AnswerText(tokenizer, transcript.stop)
        self._started_s = time.monotonic()
        self._before = uplink.bytes_sent, uplink.bytes_received, uplink.opened

    def read(self, reading: wire.Reading) -> None:
        """The server has read so much of the prompt."""
        stats = self._stream.statistics
        if not stats.tokens:  # what a resumed one reads again is no part of the figures
            stats.cached_tokens, stats.read_tokens = reading.cached_tokens, reading.read_tokens

    async def write(self, rounds: AsyncIterator[Round]) -> FinishReason:
        """Why the text ended: by its verdicts or by a stop string, whichever comes first."""
        transcript, accepted = self._transcript, list(self._transcript.accepted)
        self._stream.statistics.prompt_tokens = len(transcript.prompt)
        pieces = [piece for token in accepted for piece in self._text.push(token, drafted=False)]
        reason = "stop" if self._text.ended else transcript.finish
        self._stream.add(pieces, accepted)
        while reason is None:
            round_ = self._until_stop_string(await anext(rounds), pieces := [])
            reason = "stop" if self._text.ended else REASONS.get(round_.verdict.finish)
            self._count(round_)
            self._on_round(round_)
            # before anybody sees the new tokens
            await self._keep(round_, reason)
            self._stream.add(pieces, round_.tokens, told(round_))
        self._stream.add(self._text.finish(), ())
        return reason

    def _until_stop_string(self, round_: Round, pieces: list[Piece]) -> Round:
        """Append the text of a round: the drafted tokens, then the target's own.

        Returns the round without what comes behind a stop string: it was not asked for, and is not
        counted. A stop token has no text.
        """
        shown = len(round_.tokens) - (round_.verdict.finish is wire.Finish.STOP)
        own = None if round_.verdict.turn is wire.Turn.MORE else len(round_.tokens) - 1
        for place, token in enumerate(round_.tokens[:shown]):
            pieces += self._text.push(token, drafted=place != own)
            if self._text.ended:
                kept = round_.tokens[: place + 1]
                return replace(round_, commit=replace(round_.commit, tokens=kept))
        return round_

    async def _keep(self, round_: Round, reason: FinishReason | None) -> None:
        """Bring transcript and file up to date with a round that has been read."""
        transcript, tokens = self._transcript, round_.tokens
        if not self._text.ended and round_.verdict.finish is wire.Finish.STOP:
            tokens = tokens[:-1]
        del transcript.accepted[len(self._stream.tokens) + len(tokens) :]
        transcript.finish = reason
        if self._file is not None:
            await asyncio.to_thread(self._file.keep, transcript, tokens)

    def _count(self, round_: Round) -> None:
        stats, uplink = self._stream.statistics, self._uplink
        sent, received, opened = self._before
        stats.seconds = time.monotonic() - self._started_s
        stats.first_token_s = stats.first_token_s or stats.seconds
        stats.bytes_sent = uplink.bytes_sent - sent
        stats.bytes_received = uplink.bytes_received - received
        stats.reconnects = uplink.opened - opened
        stats.count(round_)


def told(round_: Round) -> list[TokenLogprob]:
    """The log-probabilities of a round's tokens, none where there are none."""
    if round_.logprobs is None:
        return []
    values, ids = round_.logprobs.logprobs, round_.logprobs.top_ids
    each = len(ids) // len(values)
    listed = list(zip(ids, round_.logprobs.top_logprobs, strict=True))
    # a stop string may have cut the tokens
    return [
        TokenLogprob(token, values[place], tuple(listed[place * each : (place + 1) * each]))
        for place, token in enumerate(round_.tokens)
    ]


class Answers:
    """What an edge with a draft model and one without have in common; `_rounds` is their own.

    uplink, prompts   None until there is a server
    """

    def __init__(self) -> None:
        self.uplink: Uplink | None = None
        self.prompts: Prompts | None = None
        self.writing: set[asyncio.Task[object]] = set()
        self._numbers = itertools.count(1)
        # told of each round that is over, with the number of its answer, on the edge's own loop
        self.on_round: Callable[[int, Round], None] = lambda answer, round_: None

    def _rounds(
        self,
        uplink: Uplink,
        transcript: Transcript,
        config: EdgeConfig,
        on_reading: Callable[[wire.Reading], None],
    ) -> AsyncGenerator[Round, None]:
        """What one answer brings; leaving it ends the request on the server, if it still runs.

        `on_reading` hears how far the server has read the prompt. Raises ServerError.
        """
        raise NotImplementedError

    def check_room(self, answers: int) -> None:
        """Raises ServerError where there are more than the server allows with so many more.

        It would refuse them one by one, when others of them have begun.
        """
        assert self.prompts is not None, "not connected"
        most = self.prompts.welcome.max_requests
        if len(self.writing) + answers > most:
            allowed = f"this server allows an edge {most} requests at once"
            raise ServerError(f"{allowed}; {answers} more are too many now", wire.ErrorCode.BUSY)

    async def write(
        self,
        transcript: Transcript,
        config: EdgeConfig,
        stream: Stream,
        file: ResumeFile | None = None,
    ) -> FinishReason:
        """Write an answer into a stream, within `timeout_s`. Raises ServerError, TimeoutError."""
        task = asyncio.current_task()
        assert task is not None, "not on the event loop"
        self.writing.add(task)
        try:
            return await asyncio.wait_for(
                self._write(transcript, config, stream, file), config.timeout_s or None
            )
        except asyncio.TimeoutError:
            tokens = f"{len(stream.tokens)} of at most {config.max_tokens} tokens"
            raise TimeoutError(
                f"the answer has {tokens} after {config.timeout_s:g} s, the time it was given"
            ) from None
        finally:
            self.writing.discard(task)

    async def _write(
        self, transcript: Transcript, config: EdgeConfig, stream: Stream, file: ResumeFile | None
    ) -> FinishReason:
        assert self.uplink is not None, "not connected"
        assert self.prompts is not None, "not connected"
        tell = partial(self.on_round, next(self._numbers))
        tokenizer = self.prompts.tokenizer.showing(config.spelled)
        writer = Writer(transcript, stream, tokenizer, self.uplink, file, tell)
        rounds = self._rounds(self.uplink, transcript, config, writer.read)
        async with aclosing(rounds):
            return await writer.write(rounds)

    async def close(self) -> None:
        """Cancel all answers, and hang up."""
        for task in self.writing:
            task.cancel()
        await asyncio.gather(*self.writing, return_exceptions=True)
        if self.uplink is not None:
            await self.uplink.close()
