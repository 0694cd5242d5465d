"""Tools, thoughts and formats at /v1/chat/completions, as OpenAI's own client sees them."""

import asyncio
import json
from contextlib import asynccontextmanager

import openai
import pytest

from tests.api.scripted import TOKENIZER, Scripted, served
from tests.chat_templates import ALL, CHATML, LLAMA3, MISTRAL, QWEN3, QWEN3_THINKING, SMOLLM3

USER = {"role": "user", "content": "What is the weather?"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name="weather", **more):
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


WEATHER = tool(description="The weather of a city.")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TWO = CALL + "\n" + CALL.replace("Köln", "Rom")


@asynccontextmanager
async def client_of(backend):
    async with (
        served(backend) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def asked(backend, **body):
    """The whole of an answer, and the same streamed, put together by OpenAI's own helper."""
    body = {"model": "scripted", "messages": [USER], **body}

    async def ask():
        async with client_of(backend) as client:
            whole = await client.chat.completions.create(**body)
            chunks = []
            async with client.chat.completions.stream(**body) as stream:
                async for event in stream:
                    if event.type == "chunk":
                        chunks.append(event.chunk)
                return whole, chunks, await stream.get_final_completion()

    return asyncio.run(ask())


def calls_of(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", "One moment.\n\n" + TWO),
        ("smollm3", "One moment.\n\n" + TWO),
        (
            "qwen3-coder",
            "One moment.\n<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n"
            "</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nRom\n"
            "</parameter>\n</function>\n</tool_call>",
        ),
        (
            "mistral",
            'One moment.[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}, '
            '{"name": "weather", "arguments": {"city": "Rom"}}]',
        ),
        (
            "mistral-args",
            'One moment.[TOOL_CALLS]weather[ARGS]{"city": "Köln"}'
            '[TOOL_CALLS]weather[ARGS]{"city": "Rom"}',
        ),
    ],
)
def test_calls_are_read_whole_and_streamed(name, text):
    whole, chunks, streamed = asked(Scripted(ALL[name], text), tools=[WEATHER])
    expected = [("weather", '{"city": "Köln"}'), ("weather", '{"city": "Rom"}')]
    for completion in (whole, streamed):
        (choice,) = completion.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "One moment."
        assert calls_of(choice.message) == expected
        ids = [call.id for call in choice.message.tool_calls]
        assert len(set(ids)) == 2
        assert all(one.isalnum() and len(one) == 9 for one in ids)
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)
    for index in (0, 1):
        first, *more = [delta for delta in deltas if delta.index == index]
        assert (first.function.name, first.type, first.function.arguments) == (
            "weather",
            "function",
            "",
        )
        assert len(more) > (1 if name == "qwen3-coder" else 5), "arguments come in pieces"
        for delta in more:
            assert delta.id is None
            assert delta.type is None
            assert delta.function.name is None
    roles = [chunk.choices[0].delta.role for chunk in chunks]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)


def test_llama_calls_in_json_and_python():
    for text in (
        '{"name": "weather", "parameters": {"city": "Köln"}}',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Köln"}}',
        '<|python_tag|>weather.call(city="Köln")',
    ):
        backend = Scripted(LLAMA3, text)
        for completion in asked(backend, tools=[WEATHER])[::2]:
            (choice,) = completion.choices
            assert not choice.message.content
            assert calls_of(choice.message) == [("weather", '{"city": "Köln"}')]
        # without tools a control token has no text, as ever
        plain, _, _ = asked(backend)
        assert plain.choices[0].message.content == text.removeprefix("<|python_tag|>")
        assert plain.choices[0].message.tool_calls is None


def test_thoughts_have_both_of_their_names():
    for template, text in (
        (QWEN3, "<think>\nHm.\n</think>\n\nYes."),
        (QWEN3_THINKING, "Hm.\n</think>\n\nYes."),
    ):
        whole, chunks, streamed = asked(Scripted(template, text))
        for completion in (whole, streamed):
            message = completion.choices[0].message
            assert message.content == "Yes."
            assert completion.choices[0].finish_reason == "stop"
        assert whole.choices[0].message.reasoning == "Hm."
        assert whole.choices[0].message.reasoning_content == "Hm."
        for name in ("reasoning", "reasoning_content"):
            parts = [getattr(chunk.choices[0].delta, name, None) for chunk in chunks]
            assert "".join(filter(None, parts)) == "Hm."
    backend = Scripted(QWEN3, "Yes.")
    asked(backend, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert TOKENIZER.decode(backend.asked[0][0]).endswith("<think>\n\n</think>\n\n")


def test_a_call_that_was_cut_off_is_none_to_answer():
    backend = Scripted(QWEN3, CALL[:-18], finish_reason="length")

    async def ask():
        body = {"model": "scripted", "messages": [USER], "tools": [WEATHER]}
        async with client_of(backend) as client:
            whole = await client.chat.completions.create(**body)
            chunks = [
                chunk async for chunk in await client.chat.completions.create(**body, stream=True)
            ]
            return whole, chunks

    whole, chunks = asyncio.run(ask())
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert calls_of(whole.choices[0].message) == [("weather", '{"city": "Kö')]


def whole_of(backend, **body):
    async def ask():
        async with client_of(backend) as client:
            said = {"model": "scripted", "messages": [USER], **body}
            return await client.chat.completions.create(**said)

    return asyncio.run(ask())


def test_an_answer_that_was_cut_off_behind_a_call_was_cut_off():
    backend = Scripted(QWEN3, CALL + "\nAnd", finish_reason="length")
    (choice,) = whole_of(backend, tools=[WEATHER]).choices
    assert choice.finish_reason == "length"
    assert choice.message.content == "And"
    assert len(choice.message.tool_calls) == 1


def test_what_is_no_call_is_content():
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": oops}}\n</tool_call>'
    whole, _, streamed = asked(Scripted(QWEN3, text), tools=[WEATHER])
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("stop", text)
    assert choice.message.tool_calls is None
    assert streamed.choices[0].message.content == text
    assert streamed.choices[0].finish_reason == "stop"


def test_a_conversation_with_calls_is_written_by_the_template():
    backend = Scripted(QWEN3, "It rains.")
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    messages = [
        {"role": "developer", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": None,
            "reasoning": "Hm.",
            "tool_calls": [{"id": "call_7", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_7", "content": [{"type": "text", "text": "rain"}]},
    ]
    asked(backend, messages=messages, tools=[WEATHER])
    prompt = TOKENIZER.decode(backend.asked[0][0])
    assert "Be brief." in prompt
    assert CALL in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt
    assert '"description": "The weather of a city."' in prompt
    # a template that leaves calls out gets them in the content
    backend = Scripted(SMOLLM3, "It rains.")
    asked(backend, messages=messages, tools=[WEATHER])
    assert CALL in TOKENIZER.decode(backend.asked[0][0])


def test_none_means_that_nothing_is_called():
    backend = Scripted(QWEN3, CALL)
    whole, _, _ = asked(backend, tools=[WEATHER], tool_choice="none")
    assert whole.choices[0].message.content == CALL
    assert "weather of a city" not in TOKENIZER.decode(backend.asked[0][0])
    # llama-index asks so, without tools
    whole, _, _ = asked(backend, tool_choice="required")
    assert whole.choices[0].message.content == CALL


@pytest.mark.parametrize(
    ("template", "body", "param", "sentence"),
    [
        (CHATML, {"tools": [WEATHER]}, "tools", "leaves tools out"),
        (QWEN3, {"tools": ["weather"]}, "tools[0]", "there are functions"),
        (QWEN3, {"tools": [{"type": "custom"}]}, "tools[0]", "of the type 'custom'"),
        (QWEN3, {"tools": [tool("")]}, "tools[0].function.name", "a short name"),
        (QWEN3, {"tools": [tool("a\n")]}, "tools[0].function.name", "a short name"),
        (QWEN3, {"tools": [WEATHER, tool()]}, "tools", "two functions of one name"),
        (
            QWEN3,
            {"tools": [WEATHER, tool("f", parameters={"type": "string"})]},
            "tools[1].function.parameters",
            "no JSON schema of an object",
        ),
        (QWEN3, {"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice", "'maybe'"),
        (
            QWEN3,
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
            "'other'",
        ),
        (
            QWEN3,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "reads text alone",
        ),
        (MISTRAL, {"messages": [USER, USER]}, None, "roles must alternate user/assistant"),
        (
            MISTRAL,
            {"messages": [USER, {"role": "system", "content": "x"}]},
            None,
            "refuses this conversation: only the first message may be of the system",
        ),
        (
            CHATML,
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
            "enable_thinking",
            "enable_thinking is True, and the chat template has no switch for thinking",
        ),
        (
            CHATML,
            {"extra_body": {"chat_template_kwargs": {"other": True}}},
            None,
            "unknown field `other`",
        ),
        (
            QWEN3,
            {"tools": [tool(strict=True, parameters={"not": {}})], "tool_choice": "required"},
            "tools",
            'the parameters of weather: the JSON schema cannot be enforced: .*answer to "not"',
        ),
        (QWEN3, {"response_format": {"type": "xml"}}, "response_format", "json_object"),
    ],
)
def test_what_cannot_be_is_refused_by_name(template, body, param, sentence):
    backend = Scripted(template, "")
    with pytest.raises(openai.BadRequestError, match=sentence) as refused:
        asked(backend, **body)
    if param is not None:
        assert refused.value.param == param
    assert backend.asked == []


def test_several_answers_are_read_apart():
    backend = Scripted(QWEN3, TWO)

    async def ask():
        body = {"model": "scripted", "messages": [USER], "tools": [WEATHER], "n": 2}
        async with client_of(backend) as client:
            return await client.chat.completions.create(**body)

    whole = asyncio.run(ask())
    assert [len(choice.message.tool_calls) for choice in whole.choices] == [2, 2]
    assert json.loads(whole.choices[1].message.tool_calls[1].function.arguments) == {"city": "Rom"}
