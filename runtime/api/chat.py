"""POST /v1/chat/completions: messages to answers, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from runtime.api.answering import DONE, Asked, Choice
from runtime.api.backend import Backend
from runtime.api.bodies import ChatBody
from runtime.api.errors import APIError
from runtime.api.logprobs import of_chat
from runtime.api.options import drawn
from runtime.api.structured import check_alone
from runtime.api.tools.events import Arguments, CallBegun, CallBroken, Content, Event, Thought
from runtime.api.tools.parser import Parser
from runtime.api.tools.schema import schema_of
from runtime.api.tools.use import Use, choosing
from runtime.api.usage import timings, usage


def use_of(body: ChatBody, backend: Backend) -> Use:
    """What a body says of tools and of the form of its answers. Raises APIError."""
    schema = schema_of(body.response_format, "response_format")
    check_alone(body.structured_outputs, body.tools, schema)
    return Use.of(
        body.messages,
        choosing(body.tools, body.tool_choice, body.parallel_tool_calls),
        backend.chat_template,
        backend.tokenizer,
        schema,
    )


def asked(body: ChatBody, use: Use) -> Asked:
    """What a body asks for: the whole room for an answer, where it names no length.

    Raises APIError.
    """
    length = body.max_completion_tokens or body.max_tokens
    asked = drawn(body, [use.messages], length, param="messages")
    if body.logprobs:
        asked.options["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.chat_template_kwargs and body.chat_template_kwargs.enable_thinking is not None:
        asked.options["enable_thinking"] = body.chat_template_kwargs.enable_thinking
    asked.options.update(use.of_conversation)
    by = use.constrained_by or asked.constrained_by
    return replace(asked, of_prompt=use.options, constrained_by=by)


class ChatForm:
    """The chunks and the whole of one request's answers."""

    tail = DONE

    def __init__(self, backend: Backend, asked: Asked, use: Use) -> None:
        self._tokenizer = backend.tokenizer if asked.wants_logprobs else None
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": backend.model,
        }
        # as OpenAI does: those who asked for it find a null in all chunks but the last
        self._tail: dict[str, Any] = {"usage": None} if asked.include_usage else {}
        self._use = use
        # by the index of a choice; of its tokens, those whose log-probabilities have been told
        self._parsers: dict[int, Parser] = {}
        self._told: dict[int, int] = {}

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """The role, once."""
        self._parsers[choice.index] = self._use.parser(choice.prompt)
        return [self._chunk(choice, {"role": "assistant", "content": ""})]

    def text(self, choice: Choice, text: str, tokens: slice) -> list[dict[str, Any]]:
        """A chunk for each thing that the text turns out to be."""
        return self._chunks(choice, self._parsers[choice.index].push(text))

    def end(self, choice: Choice) -> list[dict[str, Any]]:
        """Why it ended, and what it took."""
        parser, reason = self._parsers[choice.index], choice.finish_reason
        rest = self._chunks(choice, parser.finish(reason == "length"))
        last = self._chunk(choice, {}, _reason(reason, parser), self._logprobs(choice))
        return [*rest, {**last, "timings": timings(choice)}]

    def failed(self, error: APIError) -> list[dict[str, Any]]:
        """The error, as an event."""
        return [error.body()]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A chunk without choices."""
        return {**self._head, "choices": [], "usage": usage(choices)}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A chat.completion."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._whole(choice) for choice in choices],
            "usage": usage(choices),
            "timings": timings(choices[0]),
        }

    def _whole(self, choice: Choice) -> dict[str, Any]:
        parser, reason = self._use.parser(choice.prompt), choice.finish_reason
        events = [*parser.push(choice.text), *parser.finish(reason == "length")]
        return {
            "index": choice.index,
            "message": message(events),
            "logprobs": self._logprobs(choice),
            "finish_reason": _reason(reason, parser),
        }

    def _chunks(self, choice: Choice, events: Iterable[Event]) -> list[dict[str, Any]]:
        """The first of them has the log-probabilities."""
        deltas = [delta for event in events if (delta := _delta(event))]
        return [self._chunk(choice, delta, None, self._logprobs(choice)) for delta in deltas]

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        one = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return {**self._head, "choices": [one], **self._tail}

    def _logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Of the tokens that have come since they were last told; None where there are none."""
        tokens = slice(self._told.get(choice.index, 0), choice.shown)
        self._told[choice.index] = choice.shown
        if self._tokenizer is None or tokens.start == tokens.stop:
            return None
        return of_chat(self._tokenizer, choice.answer.logprobs[tokens])


def message(events: Iterable[Event]) -> dict[str, Any]:
    """An assistant's message; what was no call after all is its content alone."""
    content, thoughts, calls = "", "", list[dict[str, Any]]()
    for event in events:
        match event:
            case Content():
                content += event.text
            case Thought():
                thoughts += event.text
            case CallBegun():
                calls.append(_call(event.id, event.name))
            case Arguments():
                calls[-1]["function"]["arguments"] += event.text
            case CallBroken():
                calls.pop()
                content += event.text
    one: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
    }
    if thoughts:
        one |= _thoughts(thoughts)
    return {**one, "tool_calls": calls} if calls else one


def _delta(event: Event) -> dict[str, Any]:
    match event:
        case Content() | CallBroken():
            return {"content": event.text}
        case Thought():
            return _thoughts(event.text)
        case CallBegun():
            return {"tool_calls": [{"index": event.index, **_call(event.id, event.name)}]}
        case Arguments():
            piece = {"index": event.index, "function": {"arguments": event.text}}
            return {"tool_calls": [piece]}
    return {}


def _call(id: str, name: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}


def _thoughts(text: str) -> dict[str, Any]:
    """Under both of the names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def _reason(reason: str, parser: Parser) -> str:
    """A call that was cut off is none that could be answered."""
    return "tool_calls" if reason == "stop" and parser.has_called else reason
