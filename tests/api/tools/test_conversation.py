"""What clients send becomes what templates expect, and all else is refused by its place."""

import json

import pytest

from runtime.api.errors import APIError
from runtime.api.tools.conversation import conversation, short_id
from runtime.model.chat_template import rendered
from tests.chat_templates import ALL

USER = {"role": "user", "content": "Hello"}


def call(arguments, name="f", id="call_1"):
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def said(content=None, **more):
    return {"role": "assistant", "content": content, **more}


def test_contents_are_texts():
    parts = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"]
    refusal = {"type": "refusal", "refusal": "No."}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "Ann"},
        said(None, tool_calls=None, refusal=None, audio=None, function_call=None),
        said([refusal]),
        {"role": "user"},
    ]
    assert conversation(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo\nthree"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": ""},
    ]


def test_arguments_are_objects_and_results_have_names():
    first, second = call('{"a": "b"}'), call("", name="g", id="abcdefgh9")
    messages = [
        USER,
        said(None, tool_calls=[first, second], reasoning="Hm."),
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "x"}]},
        {"role": "tool", "tool_call_id": "abcdefgh9", "content": "y"},
        {"role": "function", "name": "h", "content": "z"},
    ]
    _, answer, *results = conversation(messages)
    known = short_id("call_1")
    assert len(known) == 9
    assert answer == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "Hm.",
        "tool_calls": [call({"a": "b"}, id=known), call({}, name="g", id="abcdefgh9")],
    }
    assert results == [
        {"role": "tool", "content": "x", "tool_call_id": known, "name": "f"},
        {"role": "tool", "content": "y", "tool_call_id": "abcdefgh9", "name": "g"},
        {"role": "tool", "content": "z", "name": "h"},
    ]
    assert conversation([said("", tool_calls=[call({"a": 1})], reasoning_content="Hm.")])[0][
        "tool_calls"
    ] == [call({"a": 1}, id=known)]


@pytest.mark.parametrize(
    ("message", "param", "sentence"),
    [
        ({"content": "x"}, "messages[1].role", "None; there are system"),
        ({"role": "ipython", "content": "x"}, "messages[1].role", "is 'ipython'"),
        ({"role": "user", "content": 7}, "messages[1].content", "neither a text nor a list"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[1].content[0]",
            "of the type 'image_url'; this model reads text alone",
        ),
        (
            {"role": "user", "content": ["a", {"type": "input_audio"}]},
            "messages[1].content[1]",
            "of the type 'input_audio'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0]", "'text'"),
        ({"role": "user", "content": [None]}, "messages[1].content[0]", "None"),
        (said(audio={"id": "x"}), "messages[1].audio", "not supported"),
        (said(function_call={"name": "f"}), "messages[1].function_call", "not supported"),
        (said(tool_calls={}.fromkeys("a")), "messages[1].tool_calls", "no list"),
        (said(tool_calls=["f"]), "messages[1].tool_calls[0].function.name", "missing"),
        (
            said(tool_calls=[call("{}"), call('{"a": ')]),
            "messages[1].tool_calls[1].function.arguments",
            "is not JSON",
        ),
        (
            said(tool_calls=[call("[1]")]),
            "messages[1].tool_calls[0].function.arguments",
            r"is \[1\]; expected a JSON object",
        ),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id", "missing"),
    ],
)
def test_what_no_template_could_write_is_refused_by_its_place(message, param, sentence):
    with pytest.raises(APIError, match=sentence) as refused:
        conversation([USER, message])
    assert refused.value.status == 400
    assert refused.value.param == param
    assert str(refused.value).startswith(param)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("chatml", "smollm3")])
def test_templates_write_what_was_called(name):
    """With ids as OpenAI's own servers give them, and no argument encoded twice."""
    given = "call_DEFGHIJKLMNOPQRSTUVWXYZ0"
    messages = [
        USER,
        said(None, tool_calls=[call('{"city": "Köln"}', id=given)]),
        {"role": "tool", "tool_call_id": given, "content": "rain"},
        said("It rains."),
        USER,
    ]
    text = rendered(ALL[name], conversation(messages), {"bos_token": "", "eos_token": ""})
    assert "Köln" in text
    assert "rain" in text
    assert '\\"' not in text
    if "coder" not in name:
        assert json.dumps({"city": "Köln"}, ensure_ascii=False) in text
