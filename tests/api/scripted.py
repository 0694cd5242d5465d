"""A backend that answers as it is told, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager

from runtime.api.app import application
from runtime.api.backend import Backend
from runtime.api.serving import serving
from runtime.edge.answer import AsyncAnswer, Stream, TokenLogprob
from runtime.edge.answer_text import Piece
from runtime.model.text_stream import TextStream
from runtime.model.tokenizer import Tokenizer
from tests.chat_templates import CONTROL
from tests.conftest import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(CONTROL), [])


def logprob(index: int, end: int) -> TokenLogprob:
    """What is said of the token that ends there: another value of each."""
    return TokenLogprob(index, -end / 64, ((index, -end / 64),))


class OneByOne(AsyncAnswer):
    """Whatever is there, readers get it token by token."""

    async def batches(self):
        async for pieces in super().batches():
            for piece in pieces:
                yield [piece]


class Scripted:
    """The same text for everyone who asks, a token a piece."""

    model, max_context, tokenizer = "scripted", 1 << 20, TOKENIZER

    def __init__(self, template: str, text: str, finish_reason: str = "stop"):
        self.chat_template, self.text, self.finish_reason = template, text, finish_reason
        self.encoded: list[tuple[object, dict[str, object]]] = []
        self.asked: list[tuple[list[int], dict[str, object]]] = []

    adapters, rtt_s = (), 0.0

    def check_room(self, answers: int) -> None:
        pass

    def unready(self) -> str:
        return ""

    def encode(self, prompt, **options) -> list[int]:
        self.encoded.append((prompt, options))
        return self.tokenizer.chat_prompt(
            prompt,
            template=self.chat_template,
            enable_thinking=options.get("enable_thinking"),
            tools=options.get("tools"),
        )

    def generate(self, prompt: Sequence[int], **options) -> AsyncAnswer:
        self.asked.append((list(prompt), options))
        stream, writing = Stream(), Future()
        ids = self.tokenizer._ids(self.text, add_special_tokens=False)
        text = TextStream(self.tokenizer.showing(options.get("spelled", ())))
        for end, index in enumerate(ids, 1):
            piece = text.push([index])
            told = [] if options.get("logprobs") is None else [logprob(index, end)]
            stream.add([Piece(piece, False, end)] if piece else [], [index], told)
        answer = OneByOne(stream, writing, lambda: None)
        writing.set_result(self.finish_reason)
        return answer


@asynccontextmanager
async def served(backend: Backend) -> AsyncIterator[str]:
    """The URL at which a backend is served."""

    async def backend_of(key: str | None) -> Backend:
        return backend

    async with serving("127.0.0.1:0", application(backend_of)) as url:
        yield f"{url}/v1"
