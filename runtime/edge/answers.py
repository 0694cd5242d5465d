"""Answers that are written at the same time, over one uplink. To be called on its event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from runtime.config import EdgeConfig
from runtime.edge.answer import Stream
from runtime.edge.loop import Round
from runtime.edge.net.uplink import Uplink
from runtime.edge.prompts import Prompts
from runtime.edge.resume import FinishReason, Transcript
from runtime.edge.resume_file import ResumeFile
from runtime.edge.writer import Writer
from runtime.wire import messages as wire


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
