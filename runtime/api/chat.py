"""POST /v1/chat/completions: messages to answers, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from runtime.api.answering import Asked, Choice
from runtime.api.backend import Backend
from runtime.api.bodies import ChatBody
from runtime.api.errors import APIError
from runtime.api.logprobs import of_chat
from runtime.api.options import drawn
from runtime.api.usage import timings, usage


def asked(body: ChatBody) -> Asked:
    """What a body asks for: the whole room for an answer, where it names no length.

    Raises APIError.
    """
    asked = drawn(
        body, [body.messages], body.max_completion_tokens or body.max_tokens, param="messages"
    )
    if body.logprobs:
        asked.options["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.chat_template_kwargs and body.chat_template_kwargs.enable_thinking is not None:
        asked.options["enable_thinking"] = body.chat_template_kwargs.enable_thinking
    return asked


class ChatForm:
    """The chunks and the whole of one request's answers."""

    def __init__(self, backend: Backend, asked: Asked) -> None:
        self._tokenizer = backend.tokenizer if asked.wants_logprobs else None
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": backend.model,
        }
        # as OpenAI does: those who asked for it find a null in all chunks but the last
        self._tail: dict[str, Any] = {"usage": None} if asked.include_usage else {}

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """The role, once."""
        return [self._chunk(choice, {"role": "assistant", "content": ""})]

    def text(self, choice: Choice, text: str, tokens: slice) -> list[dict[str, Any]]:
        """One chunk of content."""
        return [self._chunk(choice, {"content": text}, tokens=tokens)]

    def end(self, choice: Choice) -> list[dict[str, Any]]:
        """Why it ended, and what it took."""
        last = self._chunk(choice, {}, choice.finish_reason)
        return [{**last, "timings": timings(choice)}]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A chunk without choices."""
        return {**self._head, "choices": [], "usage": usage(choices)}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A chat.completion."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text},
                    "logprobs": self._logprobs(choice, slice(choice.shown)),
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            "usage": usage(choices),
            "timings": timings(choices[0]),
        }

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        tokens: slice | None = None,
    ) -> dict[str, Any]:
        one = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(choice, tokens) if tokens else None,
            "finish_reason": finish_reason,
        }
        return {**self._head, "choices": [one], **self._tail}

    def _logprobs(self, choice: Choice, tokens: slice) -> dict[str, Any] | None:
        if self._tokenizer is None:
            return None
        return of_chat(self._tokenizer, choice.answer.logprobs[tokens])
