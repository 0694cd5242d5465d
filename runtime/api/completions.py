"""POST /v1/completions: a text, or its token ids, goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from runtime.api.answering import DONE, Asked, Choice
from runtime.api.backend import Backend
from runtime.api.bodies import MAX_ANSWERS, CompletionBody
from runtime.api.echo import spelled
from runtime.api.errors import APIError
from runtime.api.logprobs import CompletionLogprobs
from runtime.api.options import drawn
from runtime.api.tools.schema import schema_of
from runtime.api.usage import timings, usage

DEFAULT_TOKENS = 16  # OpenAI's


def asked(body: CompletionBody) -> Asked:
    """What a body asks for. Raises APIError."""
    prompts = _prompts(body.prompt)
    if len(prompts) * (body.n or 1) > MAX_ANSWERS:
        raise APIError(
            400, f"a request has at most {MAX_ANSWERS} answers, all prompts together", param="n"
        )
    schema = schema_of(body.response_format, "response_format")
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if not max_tokens and not body.echo:
        raise APIError(400, "max_tokens is 0, and without echo nothing is left", param="max_tokens")
    asked = drawn(body, prompts, max_tokens, param="prompt", raw=True, schema=schema)
    if body.logprobs is not None and body.logprobs is not False:
        asked.options["logprobs"] = int(body.logprobs)
    return replace(asked, echoes=bool(body.echo))


def _prompts(given: str | list[Any]) -> list[str | list[int]]:
    """A text, texts, ids, or several lists of ids. Raises APIError."""
    if isinstance(given, str) or (given and all(type(item) is int for item in given)):
        given = [given]
    for prompt in given:
        ids = prompt if isinstance(prompt, list) else []
        is_one = isinstance(prompt, str) or bool(ids)
        if not is_one or not all(type(item) is int and item >= 0 for item in ids):
            raise APIError(
                400, "a prompt is a text or a list of token ids, or a list of these", param="prompt"
            )
    if not given:
        raise APIError(400, "prompt is an empty list; give one prompt at least", param="prompt")
    return given


class CompletionForm:
    """The chunks and the whole of one request's answers."""

    tail = DONE

    def __init__(self, backend: Backend, asked: Asked) -> None:
        self._tokenizer = backend.tokenizer if asked.wants_logprobs else None
        self._of_answers: dict[int, CompletionLogprobs] = {}  # by the index of their choice
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": backend.model,
        }
        self._tail: dict[str, Any] = {"usage": None} if asked.include_usage else {}

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """The prompt, where it is to be given back; there is no role."""
        if choice.echo is None:
            return []
        one = self._one(choice, choice.echo.text, self._logprobs_of_prompt(choice), None)
        return [{**self._head, "choices": [one], **self._tail}]

    def text(self, choice: Choice, text: str, tokens: slice) -> list[dict[str, Any]]:
        """One chunk of text."""
        one = self._one(choice, text, self._logprobs(choice, tokens), None)
        return [{**self._head, "choices": [one], **self._tail}]

    def end(self, choice: Choice) -> list[dict[str, Any]]:
        """Why it ended, and what it took."""
        last = self._one(choice, "", None, choice.finish_reason)
        return [{**self._head, "choices": [last], **self._tail, "timings": timings(choice)}]

    def failed(self, error: APIError) -> list[dict[str, Any]]:
        """The error, as an event."""
        return [error.body()]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A chunk without choices."""
        return {**self._head, "choices": [], "usage": usage(choices)}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """A text_completion."""
        took = {"usage": usage(choices), "timings": timings(choices[0])}
        return {**self._head, "choices": [self._whole(choice) for choice in choices], **took}

    def _whole(self, choice: Choice) -> dict[str, Any]:
        text, logprobs = choice.text, self._logprobs_of_prompt(choice)
        of_answer = self._logprobs(choice, slice(0, choice.shown))
        if logprobs is not None and of_answer is not None:
            of_answer = {name: logprobs[name] + of_answer[name] for name in of_answer}
        if choice.echo is not None:
            text = choice.echo.text + text
        return self._one(choice, text, of_answer, choice.finish_reason)

    def _one(
        self, choice: Choice, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs_of_prompt(self, choice: Choice) -> dict[str, Any] | None:
        """To be asked for before those of the answer, whose offsets follow."""
        if choice.echo is None or self._tokenizer is None:
            return None
        prompt = CompletionLogprobs(self._tokenizer, spelled(self._tokenizer, choice.echo.ids))
        self._of_answers[choice.index] = prompt
        first, others = prompt.first(choice.echo.ids[0]), prompt.next(choice.echo.logprobs)
        return {name: first[name] + others[name] for name in first}

    def _logprobs(self, choice: Choice, tokens: slice) -> dict[str, Any] | None:
        if self._tokenizer is None:
            return None
        of_answer = self._of_answers.setdefault(choice.index, CompletionLogprobs(self._tokenizer))
        return of_answer.next(choice.answer.logprobs[tokens])
