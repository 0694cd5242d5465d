"""Whatever a client sends, it is understood or refused with a 400."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.api.bodies import parse
from runtime.api.errors import APIError
from runtime.api.responses import ResponseBody, messages, use_of
from runtime.api.tools.chat_format import Calls
from runtime.api.tools.conversation import conversation
from runtime.api.tools.grammar import OBJECT, Function
from runtime.api.tools.schema import schema_of
from runtime.api.tools.use import Use, choosing
from tests.api.scripted import TOKENIZER, Scripted
from tests.chat_templates import ALL, CHATML, MISTRAL_ARGS, QWEN3, QWEN3_THINKING

WORDS = [
    *("type", "function", "name", "arguments", "parameters", "role", "content", "tool_calls", "id"),
    *("tool_call_id", "mode", "tools", "allowed_tools", "text", "json_schema", "schema", "auto"),
    *("user", "assistant", "tool", "message", "reasoning", "summary", "function_call", "call_id"),
    *("function_call_output", "output", "properties", "object", "strict", "{}", "required", "none"),
]
words = st.sampled_from(WORDS)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)


def check(call):
    """It is answered, or refused in a sentence; anything else is raised."""
    try:
        call()
    except APIError as error:
        refused = error
    else:
        return
    assert refused.status == 400
    assert str(refused)


@settings(max_examples=150, deadline=None)
@given(one=values, other=values, more=values)
def test_random_bodies(one, other, more):
    items = [one, other]
    check(lambda: choosing(items, more))
    check(lambda: choosing([{"type": "function", "function": one}], more))
    check(lambda: schema_of(one, "response_format"))
    roles = [{"role": "assistant", "tool_calls": one}, {"role": "tool", "content": other}]
    check(lambda: conversation([item for item in [*items, *roles] if isinstance(item, dict)]))

    def respond():
        body = {"input": items, "tools": [more], "tool_choice": one, "text": {"format": other}}
        read = parse(json.dumps(body).encode(), ResponseBody)
        conversation(*messages(read))
        use_of(read, Scripted(QWEN3, ""))

    check(respond)


FUNCTION = {"name": "f", "parameters": None, "strict": None}
TOOLS = [{"type": "function", "function": FUNCTION}, {"function": {"name": "g", "strict": True}}]


def use(template=QWEN3, **said):
    return Use.of([{"role": "user", "content": "x"}], choosing(TOOLS, **said), template, TOKENIZER)


def test_what_may_be_called():
    chosen = choosing(TOOLS)
    assert [function.name for function in chosen.functions] == ["f", "g"]
    assert [function.strict for function in chosen.functions] == [False, True]
    described = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert chosen.tools[0] == {"type": "function", "function": described}
    f = {"type": "function", "function": {"name": "f"}}
    assert choosing(TOOLS, f).choice == "f"
    allowed = {"mode": "required", "tools": [f]}
    chosen = choosing(TOOLS, {"type": "allowed_tools", "allowed_tools": allowed})
    assert (chosen.choice, [function.name for function in chosen.functions]) == ("required", ["f"])
    for nothing in (choosing(TOOLS, "none"), choosing([], "required"), choosing(None)):
        assert not nothing.tools
        assert not nothing.functions


def test_an_answer_is_held_only_where_it_has_to_be():
    f = {"type": "function", "function": {"name": "f"}}
    kinds = {
        "free": choosing(TOOLS[:1]),
        "strict": choosing(TOOLS),
        "one": choosing(TOOLS[:1], parallel=False),
        "must": choosing(TOOLS[:1], "required"),
        "named": choosing(TOOLS, f),
    }
    held = {
        name: Use([], chosen, use().form, TOKENIZER).constraint([])
        for name, chosen in kinds.items()
    }
    assert held.pop("free") is None
    assert all(constraint.kind == "lark" for constraint in held.values())
    assert '\\"g\\"' in held["strict"].text
    assert '\\"g\\"' not in held["named"].text
    content = Use([], choosing(None), use(CHATML, choice="none").form, TOKENIZER, {})
    assert content.constraint([]).kind == "json_schema"


def test_marks_that_are_control_tokens_are_spelled():
    assert set(use(MISTRAL_ARGS).marks) == {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"}
    assert use(MISTRAL_ARGS, choice="none").marks == ()
    assert set(use().marks) == {"<tool_call>", "<think>", "</think>"}
    assert use(QWEN3, choice="none").marks == ("<think>", "</think>")


@pytest.mark.parametrize("name", ALL)
def test_whether_a_prompt_has_begun_thoughts(name):
    chosen = Use.of([], choosing(None), ALL[name], TOKENIZER)
    prompt = TOKENIZER.chat_prompt([{"role": "user", "content": "<think>"}], template=ALL[name])
    assert chosen.is_thinking(prompt) == (ALL[name] == QWEN3_THINKING)


def test_strict_functions_of_no_parameters():
    assert choosing(TOOLS).functions[1] == Function("g", {**OBJECT, "properties": {}}, True)
    assert use().form.calls is Calls.JSON
