"""POST /v1/chat/completions: messages to answers, in OpenAI's form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from runtime.api.answering import Asked, Choice
from runtime.api.bodies import ChatBody
from runtime.api.options import drawn
from runtime.api.usage import timings, usage


def asked(body: ChatBody) -> Asked:
    """What a body asks for: the whole room for an answer, where it names no length."""
    return drawn(
        body, [body.messages], body.max_completion_tokens or body.max_tokens, param="messages"
    )


class ChatForm:
    """The chunks and the whole of one request's answers."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        # as OpenAI does: those who asked for it find a null in all chunks but the last
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """The role, once."""
        return [self._chunk(choice, {"role": "assistant", "content": ""})]

    def text(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        """One chunk of content."""
        return [self._chunk(choice, {"content": text})]

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
                    "message": {"role": "assistant", "content": "".join(choice.text)},
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
            "usage": usage(choices),
            "timings": timings(choices[0]),
        }

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        one = {
            "index": choice.index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return {**self._head, "choices": [one], **self._tail}
