"""How a model writes calls and thoughts, found from its chat template.

A template writes the calls of earlier turns as its model wrote them, so one is written with it and
looked at; a template that leaves them out describes their form where it lists the tools. Knows no
conversation but its own trials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from runtime.model.chat_template import rendered
from runtime.model.portable_template import SPECIAL_TOKENS

NAME, KEY, VALUE = "trial_function", "trial_key", "trial_value"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A trial.",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}},
    },
}
ASKED = [{"role": "user", "content": "A trial."}]
CALL = {
    "id": "trial0000",
    "type": "function",
    "function": {"name": NAME, "arguments": {KEY: VALUE}},
}
CALLED = [
    *ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "trial0000", "name": NAME, "content": "A trial."},
]
DROPS_TOOLS = (
    "the chat template of this model leaves tools out, so that it would never hear of them; leave "
    "tools out, or give a template that knows them with --chat-template FILE"
)
UNKNOWN_CALLS = (
    "the chat template of this model has its model write calls in a form that is not known here; "
    "leave tools out, or give another template with --chat-template FILE"
)


class Calls(Enum):
    """The forms of calls, each with what it looks like."""

    JSON = r'<tool_call>\s*\{\s*"name"'  # Qwen, Hermes and SmolLM3
    XML = r"<tool_call>\s*<function="  # Qwen3-Coder
    BARE = rf'\{{\s*"name": "{NAME}",\s*"parameters": \{{\s*"{KEY}"'  # Llama 3
    LISTED = r'\[TOOL_CALLS\]\s*\[\s*\{\s*"name"'  # Mistral
    NAMED = r"\[TOOL_CALLS\][\w.-]+(\[CALL_ID\]\w+)?\[ARGS\]"  # Mistral since 2025


@dataclass(frozen=True)
class ChatFormat:
    """What one chat template says of its model.

    calls          how calls are written; None where there can be none, and `refusal` is why
    writes_calls   whether the template writes those of earlier turns itself
    thoughts       what begins and ends them, None for a model that has no such marks
    """

    calls: Calls | None
    refusal: str
    writes_calls: bool
    thoughts: tuple[str, str] | None


# what special tokens are called plays no part; a template that came over the wire has them in it
NO_TOKENS = dict.fromkeys(SPECIAL_TOKENS, "")
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@lru_cache(maxsize=8)  # a program has one model, and perhaps a few templates
def chat_format(template: str) -> ChatFormat:
    """The format of a template, which is Jinja source."""
    thoughts = next((marks for marks in THOUGHTS if marks[1] in template), None)
    listed = _text(template, ASKED, [TOOL])
    if NAME not in listed:
        return ChatFormat(None, DROPS_TOOLS, False, thoughts)
    called = _text(template, CALLED, [TOOL])
    writes_calls = VALUE in called
    evidence = called if writes_calls else _added(_text(template, ASKED, None), listed)
    calls = next((form for form in Calls if re.search(form.value, evidence, re.DOTALL)), None)
    return ChatFormat(calls, "" if calls else UNKNOWN_CALLS, writes_calls, thoughts)


def _added(without: str, listed: str) -> str:
    """What a template writes with tools and not without them."""
    begin = _alike(without, listed)
    return listed[begin : len(listed) - _alike(without[begin:][::-1], listed[begin:][::-1])]


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _text(template: str, messages: Sequence[Any], tools: Sequence[Any] | None) -> str:
    """Empty where the template refuses the trial."""
    try:
        return rendered(template, messages, NO_TOKENS, tools)
    # a template is a program of somebody else's, which can fail as any program can
    except Exception:
        return ""
