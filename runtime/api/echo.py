"""A prompt that is given back in front of its answers, with what the model thinks of its tokens.

The model is asked for an answer that is the prompt, behind the prompt's first token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.api.backend import Backend
from runtime.constraint import Constraint
from runtime.model.text_stream import Spelled, TextStream

if TYPE_CHECKING:
    from runtime.edge.answer import TokenLogprob
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt
    from runtime.model.tokenizer import Tokenizer

MOST_TOKENS = 4096  # asked for at once: a constraint holds the ids of so many


@dataclass(frozen=True)
class Echo:
    """One prompt.

    text      as it was given; of token ids with its control tokens, spelled as they are
    logprobs  of its tokens but the first, if they are wanted: nothing is before that
    """

    text: str
    ids: Sequence[int]
    logprobs: Sequence[TokenLogprob]


async def echo(
    backend: Backend,
    prompt: Prompt | Sequence[int],
    ids: Sequence[int],
    options: RequestOptions,
) -> Echo:
    """Of a prompt and its token ids. Raises what the backend raises."""
    if isinstance(prompt, str):
        text = prompt
    else:
        stream = TextStream(spelled(backend.tokenizer, ids))
        text = await asyncio.to_thread(stream.push, ids) + stream.finish()
    wanted = options.get("logprobs") is not None
    return Echo(text, ids, await _logprobs(backend, ids, options) if wanted else [])


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> Spelled:
    """The tokenizer, for a text that has the control tokens among the ids."""
    control = tokenizer.token_bytes.control
    return tokenizer.showing({tokenizer.token(index) for index in ids if index in control})


async def _logprobs(
    backend: Backend, ids: Sequence[int], options: RequestOptions
) -> list[TokenLogprob]:
    told: list[TokenLogprob] = []
    for begin in range(1, len(ids), MOST_TOKENS):
        part = ids[begin : begin + MOST_TOKENS]
        as_given: RequestOptions = {
            **options,
            "constraint": Constraint("tokens", " ".join(map(str, part))),
            "max_tokens": len(part),
            "max_budget": 0,
            "stop": [],
        }
        answer = backend.generate(ids[:begin], **as_given)
        async for _ in answer.batches():
            pass
        told += answer.logprobs
    return told
