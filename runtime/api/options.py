"""From the fields of a body to the options of its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.api.answering import AS_IT_IS, SEEDS, Asked
from runtime.api.bodies import Body
from runtime.api.errors import APIError
from runtime.api.structured import PLACE, constraint_of

if TYPE_CHECKING:
    from runtime.edge.options import RequestOptions
    from runtime.edge.prompts import Prompt

RANDOM_SEED = -1  # llama.cpp's spelling of none
ID = re.compile(r"0|[1-9][0-9]{0,9}")  # one way to write each


def drawn(
    body: Body,
    prompts: Sequence[Prompt | Sequence[int]],
    max_tokens: int | None,
    *,
    param: str,
    raw: bool = False,
    schema: Any = None,
) -> Asked:
    """The answers that a body asks for, by OpenAI's defaults: temperature 1, nothing cut off.

    schema: of a response_format. Raises APIError.
    """
    options = _options(body, raw)
    if (constraint := constraint_of(body.structured_outputs, schema)) is not None:
        options["constraint"] = constraint
    seed = None if body.seed in (None, RANDOM_SEED) else body.seed
    return Asked(
        prompts,
        options,
        n=body.n or 1,
        max_tokens=max_tokens,
        seed=None if seed is None else seed % SEEDS,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        runs_on=_runs_on(body, max_tokens),
        param=param,
        constrained_by=PLACE if body.structured_outputs else "response_format",
    )


def _runs_on(body: Body, max_tokens: int | None) -> bool:
    """Whether the answer has to be as long as it may. Raises APIError."""
    if not body.min_tokens:
        return bool(body.ignore_eos)
    is_all = body.min_tokens == max_tokens
    is_shorter = max_tokens is None or body.min_tokens < max_tokens
    if body.stop or not (is_all or (is_shorter and body.ignore_eos)):
        raise APIError(
            400,
            "min_tokens is held to where it is the longest length as well, or beside ignore_eos, "
            "and without stop; leave it out",
            param="min_tokens",
            code="unsupported_parameter",
        )
    return True


def _options(body: Body, raw: bool) -> RequestOptions:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if "" in stop:
        raise APIError(400, "stop has an empty text; leave it out", param="stop")
    return {
        **(AS_IT_IS if raw else {"raw": False}),
        "stop": stop,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "min_p": body.min_p or 0.0,
        "top_k": max(body.top_k or 0, 0),  # -1 is all as well, as in vLLM
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "repetition_penalty": body.repetition_penalty or body.repeat_penalty or 1.0,
        "logit_bias": _by_id(body.logit_bias or {}),
    }


def _by_id(bias: Mapping[str, Any]) -> dict[Any, Any]:
    """A bias by ids of tokens, which JSON spells as names; what is no id stays what it is."""
    return {int(name) if ID.fullmatch(name) else name: value for name, value in bias.items()}
