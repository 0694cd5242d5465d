"""One request from its prompts to its last byte: n answers, as one JSON or event by event.

A client that goes away ends all of them, here and on the server. Knows no endpoint's JSON: that is
its `Form`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.api.backend import Backend
from runtime.api.causes import api_error
from runtime.api.echo import Echo, echo
from runtime.api.errors import STOPPING, APIError
from runtime.edge.answer import AsyncAnswer, Stream
from runtime.edge.net.link import ServerError
from runtime.wire.messages import MAX_BIAS, ErrorCode

if TYPE_CHECKING:
    from runtime.edge.answer_text import Piece
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt
    from runtime.edge.resume import FinishReason

# What the server refuses this soon, beside its way, is a status, at which clients try again; later
# it is an event, as the stream has begun.
GRACE_S = 0.01
WAYS = 2.0  # round trips: one may take longer than another
# A constraint is looked at by the server, and what is wrong with it is to be a status.
LOOK_GRACE_S = 2.0
KEEP_ALIVE_S = 1.0
COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
# Ends of a line to Python's str.splitlines, and so to httpx's iter_lines, though not to JSON nor to
# server-sent events: written as they are, they would cut an event in two for such clients.
LINE_ENDS = {"\x85": rb"\u0085", "\u2028": rb"\u2028", "\u2029": rb"\u2029"}
SEEDS = 2**63
# for what is no conversation: not written into a template, whatever the edge has been told of one
AS_IT_IS: RequestOptions = {
    "raw": True,
    "system": None,
    "chat_template": "",
    "enable_thinking": None,
    "tools": None,
}


@dataclass(frozen=True)
class Asked:
    """A request, as far as it does not matter at which endpoint it came.

    max_tokens is None for as many as there is room for, and 0 only where the prompts are echoed;
    without a seed one is drawn.
    """

    prompts: Sequence[Prompt | Sequence[int]]
    options: RequestOptions
    n: int = 1
    max_tokens: int | None = None
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    runs_on: bool = False  # whether no answer ends by a stop token
    echoes: bool = False  # whether the prompts are given back, in front of their answers
    param: str = "prompt"  # the field that the prompts came in
    constrained_by: str = "response_format"  # the field that a constraint came in, if there is one
    # further options of an answer, once the ids of its prompt are known; called in threads
    of_prompt: Callable[[Sequence[int]], RequestOptions] = lambda ids: {}

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answers come with log-probabilities."""
        return self.options.get("logprobs") is not None


@dataclass
class Choice:
    """One of the answers to a request."""

    index: int
    prompt: list[int]
    answer: AsyncAnswer
    is_constrained: bool = False
    echo: Echo | None = None  # of the prompt, where it is given back
    texts: list[str] = field(default_factory=list)
    shown: int = 0  # of the answer's tokens, those whose text has come

    @property
    def text(self) -> str:
        """What has come of it."""
        return "".join(self.texts)

    def add(self, pieces: Sequence[Piece]) -> tuple[str, slice]:
        """Take in what has come; gives the text of it, and where its tokens are in the answer."""
        text, start, self.shown = "".join(pieces), self.shown, pieces[-1].end
        self.texts.append(text)
        return text, slice(start, self.shown)

    @property
    def finish_reason(self) -> str:
        """As OpenAI says it. Raises APIError where the answer was cut off on our side."""
        reason = self.answer.finish_reason
        if reason not in ("stop", "length"):
            raise APIError(503, STOPPING)
        return reason


News = tuple[Choice, Sequence["Piece"]]


class Form(Protocol):
    """How an endpoint spells its answers. tail: what ends a stream."""

    tail: bytes

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks in front of a choice's text."""

    def text(self, choice: Choice, text: str, tokens: slice) -> list[dict[str, Any]]:
        """Chunks for more of its text, that of these of its tokens."""

    def end(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks behind it."""

    def failed(self, error: APIError) -> list[dict[str, Any]]:
        """Chunks that end a stream which an error has broken off."""

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The last chunk, for those who want it."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All answers in one."""


class Answering(Response):
    """What an endpoint returns: the answers, once they are there, or as they come."""

    def __init__(self, backend: Backend, asked: Asked, form: Form, is_long: bool = False) -> None:
        """is_long: whether reading the prompts may take so long that a stream begins before."""
        super().__init__()
        self._backend, self._asked, self._form, self._is_long = backend, asked, form, is_long
        self._choices: list[Choice] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop where the client goes away first."""
        try:
            answering = self._stream(send) if self._asked.stream else self._send_whole(send)
            await _unless(_disconnected(receive), answering)
        except Exception as error:
            await api_error(error).response()(scope, receive, send)
        finally:
            for choice in self._choices:
                choice.answer.cancel()

    async def _send_whole(self, send: Send) -> None:
        async for choice, pieces in self._written():
            if pieces:
                choice.add(pieces)
        body = msgspec.json.encode(self._form.whole(self._choices))
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        """Raises only as long as nothing has been sent, unless it is cancelled."""
        if not self._is_long:
            self._choices = await begin(self._backend, self._asked)
        events, begun = self._events(), False
        event = asyncio.ensure_future(anext(events, None))
        try:
            is_constrained = any(choice.is_constrained for choice in self._choices)
            grace_s = LOOK_GRACE_S if is_constrained else GRACE_S
            await asyncio.wait({event}, timeout=grace_s + WAYS * self._backend.rtt_s)
            if event.done():
                event.result()
            head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            head.append((b"x-accel-buffering", b"no"))
            await send({"type": "http.response.start", "status": 200, "headers": head})
            begun = True
            await send(_part(COMMENT))
            while (data := await self._next(event, send)) is not None:
                await send(_part(data))
                event = asyncio.ensure_future(anext(events, None))
            await send({"type": "http.response.body", "body": self._form.tail})
        except asyncio.CancelledError:
            if begun:  # the client has gone, and hears nothing, or this endpoint is stopping
                end = self._failed(APIError(503, STOPPING)) + self._form.tail
                await send({"type": "http.response.body", "body": end})
            raise
        finally:
            event.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await event
            await events.aclose()

    async def _next(self, event: asyncio.Future[bytes | None], send: Send) -> bytes | None:
        """The next event, with comments until it is there; an error is one, too."""
        while not event.done():
            await asyncio.wait({event}, timeout=KEEP_ALIVE_S)
            if not event.done():
                await send(_part(self._sign_of_life()))
        try:
            return event.result()
        except Exception as error:
            # the iterator has ended with it, so this is the last event
            return self._failed(api_error(error))

    def _failed(self, error: APIError) -> bytes:
        return b"".join(map(_event, self._form.failed(error)))

    def _sign_of_life(self) -> bytes:
        """A comment, for clients and whatever is between; says how far a prompt has been read."""
        spent = [choice.answer.statistics for choice in self._choices]
        total = sum(one.prompt_tokens for one in spent)
        if not total or any(one.tokens for one in spent):
            return COMMENT
        return b": %d of %d tokens read\n\n" % (sum(one.read_tokens for one in spent), total)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        begun: set[int] = set()
        async for choice, pieces in self._written():
            if choice.index not in begun:
                begun.add(choice.index)
                for chunk in self._form.begin(choice):
                    yield _event(chunk)
            chunks = (
                self._form.text(choice, *choice.add(pieces)) if pieces else self._form.end(choice)
            )
            for chunk in chunks:
                yield _event(chunk)
        if self._asked.include_usage:
            yield _event(self._form.usage(self._choices))

    async def _written(self) -> AsyncGenerator[News, None]:
        """Pieces of any choice as they come; none are its end."""
        self._choices = self._choices or await begin(self._backend, self._asked)
        news: asyncio.Queue[News | BaseException] = asyncio.Queue()
        followers = [asyncio.ensure_future(_follow(choice, news)) for choice in self._choices]
        left = len(followers)
        try:
            while left:
                item = await news.get()
                if isinstance(item, BaseException):
                    raise self._named(item)
                left -= not item[1]  # one more has ended
                yield item
        finally:
            for follower in followers:
                follower.cancel()

    def _named(self, error: BaseException) -> BaseException:
        """What the server says of a constraint, with the field that the constraint came in."""
        if not isinstance(error, ServerError) or error.code is not ErrorCode.CONSTRAINT:
            return error
        told = api_error(error)
        told.param = self._asked.constrained_by
        return told


async def begin(backend: Backend, asked: Asked) -> list[Choice]:
    """Encode the prompts and ask for all answers, or for none.

    Raises what the backend raises, and APIError.
    """
    seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed
    # all are looked at before any is asked: nothing is left running behind an error
    encoded = [await _encoded(backend, asked, prompt) for prompt in asked.prompts]
    echoes = await _echoes(backend, asked, encoded) if asked.echoes else [None] * len(encoded)
    if asked.max_tokens != 0:
        backend.check_room(len(encoded) * asked.n)
    choices: list[Choice] = []
    try:
        for (ids, options), echoed in zip(encoded, echoes, strict=True):
            is_constrained = options.get("constraint") is not None
            for number in range(asked.n):
                drawn: RequestOptions = {**options, "seed": (seed + number) % SEEDS}
                answer = backend.generate(ids, **drawn) if drawn["max_tokens"] else _no_answer()
                choices.append(Choice(len(choices), ids, answer, is_constrained, echoed))
    except BaseException:
        for choice in choices:
            choice.answer.cancel()
        raise
    return choices


async def _echoes(
    backend: Backend, asked: Asked, encoded: Sequence[tuple[list[int], RequestOptions]]
) -> list[Echo]:
    """Of all prompts at once. Raises what the backend raises."""
    echoing = [
        asyncio.ensure_future(echo(backend, prompt, *of_prompt))
        for prompt, of_prompt in zip(asked.prompts, encoded, strict=True)
    ]
    try:
        return await asyncio.gather(*echoing)
    finally:
        for one in echoing:
            one.cancel()


def _no_answer() -> AsyncAnswer:
    """One that has ended before its first token, as it was asked to."""
    writing: Future[FinishReason] = Future()
    writing.set_result("length")
    return AsyncAnswer(Stream(), writing, lambda: None)


async def encode(backend: Backend, asked: Asked, prompt: Prompt | Sequence[int]) -> list[int]:
    """The ids of a prompt, however many. Raises APIError."""
    # a long prompt takes a while, in which others are served
    try:
        return await asyncio.to_thread(backend.encode, prompt, **asked.options)
    except ValueError as error:
        found = api_error(error)
        if found.param not in asked.options:  # the prompt's own, or of no request
            found.param = asked.param
        raise found from error


async def _encoded(
    backend: Backend, asked: Asked, prompt: Prompt | Sequence[int]
) -> tuple[list[int], RequestOptions]:
    """The ids of a prompt, and the options of its answers. Raises APIError."""
    ids = await encode(backend, asked, prompt)
    room = backend.max_context - len(ids)
    if room < 1:
        raise APIError(
            400,
            # litellm and LangChain know the case by these words, and not by its code
            f"the prompt is too long: it has {len(ids)} tokens, and this model's maximum context "
            f"length is {backend.max_context} with the answer",
            param=asked.param,
            code="context_length_exceeded",
        )
    more = await asyncio.to_thread(asked.of_prompt, ids)
    if asked.runs_on:
        banned = dict.fromkeys(backend.tokenizer.stop_ids, -MAX_BIAS)
        more = {**more, "logit_bias": {**asked.options.get("logit_bias", {}), **banned}}
    max_tokens = room if asked.max_tokens is None else min(asked.max_tokens, room)
    return ids, {**asked.options, **AS_IT_IS, **more, "max_tokens": max_tokens}


async def _follow(choice: Choice, news: asyncio.Queue[News | BaseException]) -> None:
    try:
        async for pieces in choice.answer.batches():
            news.put_nowait((choice, pieces))
    except Exception as error:
        news.put_nowait(error)
    else:
        news.put_nowait((choice, []))


async def _unless(gone: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but leave it as soon as the other ends."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: dict[str, Any]) -> bytes:
    """One of server-sent events, which has a name where its data say so."""
    name = f"event: {data['type']}\n".encode() if "type" in data else b""
    text = msgspec.json.encode(data)
    for character, escaped in LINE_ENDS.items():
        text = text.replace(character.encode(), escaped)
    return name + b"data: " + text + b"\n\n"


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
