"""POST /v1/responses: OpenAI's newer endpoint, as coding agents use it.

Nothing is stored: a request brings the whole conversation. Tools that are not functions are left
out, as agents list some that are their provider's own. The items of an answer are in
`response_items.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from msgspec import Meta

from runtime.api.absent import NOT_STORED
from runtime.api.answering import Asked, Choice
from runtime.api.backend import Backend
from runtime.api.bodies import Body, Likeliest, Tokens
from runtime.api.errors import APIError
from runtime.api.logprobs import MessageLogprobs
from runtime.api.options import drawn
from runtime.api.response_items import Chunk, Items
from runtime.api.structured import check_alone
from runtime.api.tools.parser import Parser
from runtime.api.tools.schema import schema_of
from runtime.api.tools.use import Use, choosing
from runtime.api.usage import usage

# fields by which a request leans on what would have been stored, or runs without its client
STORED = ("previous_response_id", "conversation", "prompt", "background")
LOGPROBS = "message.output_text.logprobs"  # in `include`
# what other endpoints know by this name, or this one does not give; and what to do
ELSEWHERE = {
    "max_tokens": "this endpoint calls it max_output_tokens",
    "n": "there is one answer here; leave it out",
    "response_format": "this endpoint calls it text.format",
}


class ResponseBody(Body, kw_only=True):
    """POST /v1/responses"""

    input: str | Annotated[list[Any], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Likeliest | None = None
    include: list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


def use_of(body: ResponseBody, backend: Backend) -> Use:
    """What a body says, as a chat would. Raises APIError."""
    for name in STORED:
        if getattr(body, name):
            raise APIError(400, f"{name}: {NOT_STORED}", param=name, code="unsupported_parameter")
    for name, sentence in ELSEWHERE.items():
        if (value := getattr(body, name)) and (name, value) != ("n", 1):
            raise APIError(400, f"{name}: {sentence}", param=name, code="unsupported_parameter")
    schema = schema_of((body.text or {}).get("format"), "text.format")
    check_alone(body.structured_outputs, body.tools, schema)
    said, places = messages(body)
    return Use.of(
        said,
        choosing(functions(body.tools), _choice(body.tool_choice), body.parallel_tool_calls),
        backend.chat_template,
        backend.tokenizer,
        schema,
        "text.format",
        places,
    )


def asked(body: ResponseBody, use: Use) -> Asked:
    """What a body asks for: the whole room for an answer, where it names no length."""
    asked = drawn(body, [use.messages], body.max_output_tokens, param="input")
    # whoever says how many is taken to want them, though OpenAI hears `include` alone
    if body.top_logprobs or LOGPROBS in (body.include or []):
        asked.options["logprobs"] = body.top_logprobs or 0
    asked.options.update(use.of_conversation)
    by = use.constrained_by or asked.constrained_by
    return replace(asked, include_usage=False, of_prompt=use.options, constrained_by=by)


def messages(body: ResponseBody) -> tuple[list[dict[str, Any]], list[str]]:
    """The input as a chat's messages, and where in it each begins.

    Raises APIError for items that would be lost.
    """
    said, places = list[dict[str, Any]](), list[str]()
    if body.instructions:
        said, places = [{"role": "system", "content": body.instructions}], ["instructions"]
    if isinstance(body.input, str):
        return [*said, {"role": "user", "content": body.input}], [*places, "input"]
    for number, item in enumerate(body.input):
        _add(said, item, f"input[{number}]")
        places += [f"input[{number}]"] * (len(said) - len(places))
    return said, places


def functions(tools: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The functions among the tools, as a chat has them."""
    kept = [tool for tool in tools or [] if isinstance(tool, Mapping)]
    return [
        {"type": "function", "function": tool.get("function", tool)}
        for tool in kept
        if tool.get("type") == "function"
    ]


def _choice(choice: Any) -> Any:
    """A tool_choice as a chat has it."""
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools]}:
            allowed = {"mode": mode, "tools": [_choice(tool) for tool in tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _add(said: list[dict[str, Any]], item: Any, place: str) -> None:
    """One more item; those of one answer are one message."""
    if not isinstance(item, Mapping):
        raise APIError(400, f"{place} is no item", param=place)
    match item.get("type", "message"):
        case "message" if item.get("role") == "assistant":
            _answer(said, "content", "tool_calls")["content"] = item.get("content")
        case "message":
            said.append({"role": item.get("role"), "content": item.get("content")})
        case "reasoning":
            _answer(said, "reasoning", "content", "tool_calls")["reasoning"] = _thoughts(item)
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _answer(said).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            result = {"tool_call_id": item.get("call_id"), "content": item.get("output")}
            said.append({"role": "tool", **result})
        case kind:
            sentence = f"{place} is of the type {kind!r:.40}; {NOT_STORED}, in messages, reasoning"
            raise APIError(400, f"{sentence}, calls of functions and their outputs", param=place)


def _answer(said: list[dict[str, Any]], *taken: str) -> dict[str, Any]:
    """The message that an item of an answer belongs to; the last one has none of `taken`."""
    last = said[-1] if said else {}
    if last.get("role") != "assistant" or any(key in last for key in taken):
        said.append({"role": "assistant"})
    return said[-1]


def _thoughts(item: Mapping[str, Any]) -> str:
    """The text of a reasoning item; what another model has encrypted cannot be read."""
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


class ResponseForm:
    """The events and the whole of the answer to one request."""

    tail = b""

    def __init__(self, backend: Backend, asked: Asked, body: ResponseBody, use: Use) -> None:
        self._use, self._number = use, 0
        self._parser: Parser | None = None
        tokenizer = backend.tokenizer
        shown = tokenizer.showing(use.marks)
        self._logprobs = MessageLogprobs(tokenizer, shown) if asked.wants_logprobs else None
        self._items = Items(self._logprobs)
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": backend.model,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def begin(self, choice: Choice) -> list[Chunk]:
        """That there is a response."""
        self._parser = self._use.parser(choice.prompt)
        kinds = ("response.created", "response.in_progress")
        return self._numbered({"type": kind, "response": self._response} for kind in kinds)

    def text(self, choice: Choice, text: str, tokens: slice) -> list[Chunk]:
        """Of each thing that the text turns out to be, that it began, more of it, and its end."""
        assert self._parser is not None, "it has begun"
        if self._logprobs is not None:
            self._logprobs.read(choice.answer.logprobs[tokens])
        return self._numbered(self._items.take(self._parser.push(text)))

    def end(self, choice: Choice) -> list[Chunk]:
        """The whole response, complete or not."""
        assert self._parser is not None, "it has begun"
        is_cut_off = choice.finish_reason == "length"
        rest = self._items.take(self._parser.finish(is_cut_off))
        rest += self._items.close("incomplete" if is_cut_off else "completed")
        status = "incomplete" if is_cut_off else "completed"
        self._response |= {"status": status, "output": self._items.items, "usage": _usage(choice)}
        if is_cut_off:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        return self._numbered([*rest, {"type": f"response.{status}", "response": self._response}])

    def failed(self, error: APIError) -> list[Chunk]:
        """That there will be no more of it; clients want to hear of a beginning first."""
        begun = [] if self._number else [{"type": "response.created", "response": self._response}]
        told = {"code": error.code or "server_error", "message": str(error)}
        failed = {**self._response, "status": "failed", "error": told}
        return self._numbered([*begun, {"type": "response.failed", "response": failed}])

    def usage(self, choices: Sequence[Choice]) -> Chunk:
        """Nobody asks for it here: the last event has it."""
        raise AssertionError("a response has its usage")

    def whole(self, choices: Sequence[Choice]) -> Chunk:
        """A response."""
        self.begin(choices[0])
        self.text(choices[0], choices[0].text, slice(choices[0].shown))
        self.end(choices[0])
        return self._response

    def _numbered(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        numbered = list[Chunk]()
        for chunk in chunks:
            numbered.append({**chunk, "sequence_number": self._number})
            self._number += 1
        return numbered


def _usage(choice: Choice) -> dict[str, Any]:
    """As this endpoint names it; tokens of thoughts are among those of the answer."""
    took = usage([choice])
    return {
        "input_tokens": took["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": choice.answer.statistics.cached_tokens},
        "output_tokens": took["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": took["total_tokens"],
    }
