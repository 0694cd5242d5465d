"""What answers took, as OpenAI's `usage` and llama.cpp's `timings` say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.api.answering import Choice


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """Of one request; a prompt with several answers is counted once."""
    prompt_tokens = cached_tokens = 0
    counted: list[int] | None = None
    for choice in choices:
        if choice.prompt is not counted:  # those of one prompt are neighbours
            counted = choice.prompt
            prompt_tokens += len(counted)
            cached_tokens += choice.answer.statistics.cached_tokens
    completion_tokens = sum(len(choice.answer.tokens) for choice in choices)
    drafted = sum(choice.answer.statistics.drafted_nodes for choice in choices)
    accepted = sum(choice.answer.statistics.accepted_nodes for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }


def timings(choice: Choice) -> dict[str, Any]:
    """Of one answer; the prompt's time is that until the first tokens, its way included."""
    spent, prompt_n = (
        choice.answer.statistics,
        len(choice.prompt) - choice.answer.statistics.cached_tokens,
    )
    prompt_ms = spent.first_token_s * 1e3
    predicted_ms = spent.seconds * 1e3 - prompt_ms
    return {
        "cache_n": spent.cached_tokens,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_second": prompt_n / prompt_ms * 1e3 if prompt_ms else 0.0,
        "predicted_n": spent.tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_second": (spent.tokens - 1) / predicted_ms * 1e3 if predicted_ms else 0.0,
        "draft_n": spent.drafted_nodes,
        "draft_n_accepted": spent.accepted_nodes,
    }
