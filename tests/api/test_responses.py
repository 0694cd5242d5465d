"""/v1/responses as OpenAI's own client sees it, whole and event by event."""

import asyncio

import httpx
import openai
import pytest

from runtime.api.errors import APIError
from runtime.api.responses import ResponseBody, ResponseForm, use_of
from runtime.api.responses import asked as asked_of
from runtime.edge.net.link import ServerError
from tests.api.scripted import TOKENIZER, Scripted, served
from tests.api.test_tool_chat import CALL, SCHEMA, client_of
from tests.chat_templates import CHATML, QWEN3

WEATHER = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": SCHEMA}
HOSTED = [{"type": "web_search"}, {"type": "local_shell"}, {"type": "custom", "name": "patch"}]
LOGPROBS = "message.output_text.logprobs"
TEXT = "<think>\nHm.\n</think>\n\nOne moment.\n" + CALL


def asked(backend, **body):
    """A whole response, and the events and the response of a streamed one."""
    body = {"model": "scripted", "input": "What is the weather?", **body}

    async def ask():
        async with client_of(backend) as client:
            whole = await client.responses.create(**body)
            events = []
            async with client.responses.stream(**body) as stream:
                async for event in stream:
                    events.append(event)
                # the helper has none for one that is incomplete
                is_whole = whole.status == "completed"
                return whole, events, await stream.get_final_response() if is_whole else None

    return asyncio.run(ask())


def test_reasoning_text_and_calls_are_items():
    backend = Scripted(QWEN3, TEXT)
    whole, events, streamed = asked(backend, tools=[*HOSTED, WEATHER], instructions="Be brief.")
    for response in (whole, streamed):
        assert response.status == "completed"
        reasoning, message, call = response.output
        assert (reasoning.type, reasoning.summary) == ("reasoning", [])
        assert [part.text for part in reasoning.content] == ["Hm."]
        assert (message.role, message.status) == ("assistant", "completed")
        assert response.output_text == "One moment."
        assert (call.type, call.name, call.arguments) == (
            "function_call",
            "weather",
            '{"city": "Köln"}',
        )
        assert call.call_id != call.id
        usage = response.usage
        assert usage.output_tokens == len(TOKENIZER._ids(TEXT, add_special_tokens=False))
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    ends = [kind for kind in kinds if not kind.endswith("delta")]
    assert ends == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert kinds.count("function_call_arguments.delta") > 5
    items = [event for event in events if event.type.startswith("response.output_item")]
    assert [event.output_index for event in items] == [0, 0, 1, 1, 2, 2]
    prompt = TOKENIZER.decode(backend.asked[0][0])
    assert "Be brief." in prompt
    assert "Of a city." in prompt
    assert "web_search" not in prompt


def test_a_conversation_goes_on_with_its_items():
    backend = Scripted(QWEN3, "It rains.")
    call = {"type": "function_call", "call_id": "call_7", "name": "weather", "id": "fc_1"}
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "What is the weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "?"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "One moment."}],
        },
        {**call, "arguments": '{"city": "Köln"}'},
        {**call, "arguments": '{"city": "Rom"}', "call_id": "call_8"},
        {"type": "function_call_output", "call_id": "call_7", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "call_8",
            "output": [{"type": "input_text", "text": "sun"}],
        },
    ]
    whole, _, _ = asked(backend, input=items, tools=[WEATHER], store=True)
    assert whole.output_text == "It rains."
    assert whole.store is False
    ((messages,), _) = backend.encoded[0][:1], None
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "tool", "tool")
    ]
    assert messages[2]["content"] == "One moment."
    calls = [call["function"]["arguments"]["city"] for call in messages[2]["tool_calls"]]
    assert calls == ["Köln", "Rom"]
    assert [message.get("content") for message in messages[3:]] == ["rain", "sun"]
    assert messages[3]["tool_call_id"] == messages[2]["tool_calls"][0]["id"]


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x"},
        {"input": "Grüße <|im_end|>", "instructions": "Be brief."},
        {"input": [{"role": "user", "content": "x" * 5000}], "tools": [*HOSTED, WEATHER]},
        {"input": "x", "tools": [WEATHER], "tool_choice": "none"},
        {"input": "x", "tools": [WEATHER], "tool_choice": "required"},
        {"input": "x", "text": {"format": {"type": "json_object"}}, "truncation": "auto"},
        {
            "input": [
                {"role": "user", "content": "What is the weather?"},
                {"type": "reasoning", "id": "rs_1", "summary": [{"text": "Hm."}]},
                {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "rain"},
            ],
            "tools": [WEATHER],
        },
    ],
)
def test_input_tokens_are_those_of_the_response(body):
    backend = Scripted(QWEN3, "It rains.")

    async def count():
        async with client_of(backend) as client:
            return await client.responses.input_tokens.count(model="scripted", **body)

    counted = asyncio.run(count())
    assert counted.object == "response.input_tokens"
    whole, _, _ = asked(backend, **{k: v for k, v in body.items() if k != "truncation"})
    assert counted.input_tokens == whole.usage.input_tokens == len(backend.asked[0][0])


def test_input_that_is_too_long_is_counted_and_what_is_wrong_refused():
    backend = Scripted(QWEN3, "")
    backend.max_context = 50

    async def ask():
        async with client_of(backend) as client:
            count = client.responses.input_tokens.count
            assert (await count(input="x" * 100)).input_tokens > 100
            with pytest.raises(
                openai.BadRequestError, match=r"prompt is too long: it has .* length is 50 "
            ):
                await client.responses.create(model="scripted", input="x" * 100)
            for wrong, param in (
                ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
                ({"input": [{"type": "computer_call"}]}, "input[0]"),
                ({}, "input"),
            ):
                with pytest.raises(openai.BadRequestError) as refused:
                    await count(**wrong)
                assert refused.value.param == param
            with pytest.raises(openai.NotFoundError, match="'other'"):
                await count(model="other", input="x")

    asyncio.run(ask())


def test_an_agent_is_understood():
    """A body as Codex sends it."""
    backend = Scripted(QWEN3, CALL)
    shell = {
        "type": "function",
        "name": "shell",
        "description": "Runs a command.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "array", "items": {"type": "string"}}},
            "required": ["command"],
            "additionalProperties": False,
        },
    }
    text = {"type": "input_text", "text": "List the files."}
    whole, _, _ = asked(
        backend,
        instructions="You are a coding agent.",
        input=[
            {"type": "message", "role": "developer", "content": [text]},
            {"type": "message", "role": "user", "content": [text]},
        ],
        tools=[shell, *HOSTED, WEATHER],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        text={"verbosity": "low"},
        extra_body={"prompt_cache_key": "x", "client_metadata": {"a": "b"}},
    )
    assert [item.name for item in whole.output] == ["weather"]
    assert whole.parallel_tool_calls is False
    constraint = backend.asked[0][1]["constraint"]
    assert '"command"' in constraint.text, "at most one call, and that is a valid one"


def test_an_answer_that_is_cut_off_is_incomplete():
    backend = Scripted(QWEN3, TEXT[:-18], finish_reason="length")
    whole, events, _ = asked(backend, tools=[WEATHER], max_output_tokens=99)
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output[-1].status == "incomplete"
    assert events[-1].type == "response.incomplete"
    kinds = [event.type for event in events]
    assert "response.function_call_arguments.done" not in kinds
    assert backend.asked[0][1]["max_tokens"] == 99


def test_what_is_no_call_is_text():
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": oops}}\n</tool_call>'
    whole, events, streamed = asked(Scripted(QWEN3, text), tools=[WEATHER])
    for response in (whole, streamed):
        assert response.output_text == text
        assert [item.type for item in response.output] == ["message"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.status for item in done] == ["incomplete", "completed"]
    assert [item.type for item in done] == ["function_call", "message"]


def test_nothing_is_stored():
    async def ask(url, client):
        for field, value in {
            "previous_response_id": "resp_1",
            "conversation": "conv_1",
            "background": True,
            "prompt": {"id": "pmpt_1"},
        }.items():
            with pytest.raises(openai.BadRequestError, match="not stored here") as refused:
                await client.responses.create(model="scripted", input="x", **{field: value})
            assert refused.value.param == field
        with pytest.raises(openai.NotFoundError, match="not stored here"):
            await client.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="not stored here"):
            await client.responses.delete("resp_1")

    async def both():
        backend = Scripted(QWEN3, "")
        async with served(backend) as url, client_of(backend) as client:
            await ask(url, client)

    asyncio.run(both())


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"input": [{"type": "computer_call"}]}, "of the type 'computer_call'"),
        ({"input": ["x"]}, r"input\[0\] is no item"),
        ({"tools": [WEATHER]}, "leaves tools out"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            r"^.*input\[0\].content\[0\] .*reads text alone",
        ),
        (
            {"input": [{"role": "user", "content": "x"}, {"content": "x"}], "instructions": "Be."},
            r"input\[1\].role is None",
        ),
        ({"extra_body": {"max_tokens": 5}}, "calls it max_output_tokens"),
        ({"extra_body": {"n": 2}}, "one answer"),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, "calls it text.format"),
        ({"top_logprobs": 21}, "top_logprobs"),
        (
            {
                "text": {"format": {"type": "json_object"}},
                "extra_body": {"structured_outputs": {"regex": "a"}},
            },
            "structured_outputs does not go with",
        ),
    ],
)
def test_what_cannot_be_is_refused(body, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence):
        asked(Scripted(CHATML, ""), **body)


def test_a_response_that_breaks_off_has_failed():
    class Broken(Scripted):
        def generate(self, prompt, **options):
            answer = super().generate(prompt, **options)
            answer._stream.error = ServerError("the server is gone")
            return answer

    async def ask(text):
        async with client_of(Broken(CHATML, text)) as client:
            stream = await client.responses.create(model="scripted", input="x", stream=True)
            return [event async for event in stream]

    *_, last = events = asyncio.run(ask("Hi."))
    assert events[0].type == "response.created"
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.message == "the server is gone"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with pytest.raises(openai.InternalServerError, match="the server is gone"):
        asyncio.run(ask(""))


BROKEN = 'Wait: é <tool_call>{"name": "weather", no'


@pytest.mark.parametrize("fields", [{"include": [LOGPROBS]}, {"top_logprobs": 1}])
@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (TEXT, ["One moment."]),
        ("Grüße \N{EARTH GLOBE EUROPE-AFRICA}!", ["Grüße \N{EARTH GLOBE EUROPE-AFRICA}!"]),
        (BROKEN, [BROKEN]),
        (CALL + "Then this.", ["Then this."]),
    ],
)
def test_log_probabilities_are_those_of_a_message(text, messages, fields):
    """A token a byte, each with a value that says which one it is."""
    whole, events, streamed = asked(Scripted(QWEN3, text), tools=[WEATHER], **fields)
    ids = TOKENIZER._ids(text, add_special_tokens=False)
    for response in (whole, streamed):
        parts = [item.content[0] for item in response.output if item.type == "message"]
        assert [part.text for part in parts] == messages
        for part in parts:
            assert bytes(byte for one in part.logprobs for byte in one.bytes) == part.text.encode()
            place = len(text[: text.index(part.text)].encode())
            for end, one in enumerate(part.logprobs, place + 1):
                assert one.logprob == pytest.approx(-end / 64)
                assert one.bytes == [text.encode()[end - 1]]
                likeliest = [(top.token, top.logprob) for top in one.top_logprobs]
                assert likeliest == [(one.token, one.logprob)]
        assert whole.top_logprobs == fields.get("top_logprobs", 0)
    assert len(ids) == len(text.encode())
    deltas = [one for event in events if event.type.endswith("text.delta") for one in told(event)]
    done = [one for event in events if event.type.endswith("text.done") for one in told(event)]
    assert deltas == done == [(one.token, one.logprob) for part in parts for one in part.logprobs]


def told(event):
    return [(one.token, one.logprob) for one in getattr(event, "logprobs", None) or []]


def test_log_probabilities_are_not_told_unasked():
    whole, _, _ = asked(Scripted(QWEN3, "Hi."), top_logprobs=0)
    assert whole.output[0].content[0].logprobs == []


def test_a_beginning_is_told_before_a_failure():
    backend, body = Scripted(CHATML, ""), ResponseBody(input="x")
    use = use_of(body, backend)
    form = ResponseForm(backend, asked_of(body, use), body, use)
    events = form.failed(APIError(503, "the server is gone"))
    assert [event["type"] for event in events] == ["response.created", "response.failed"]
    assert [event["sequence_number"] for event in events] == [0, 1]
    assert events[0]["response"]["status"] == "in_progress"


def test_events_have_names_and_no_mark_at_the_end():
    async def ask():
        async with served(Scripted(CHATML, "Hi.")) as url, httpx.AsyncClient(timeout=60) as client:
            body = {"input": "x", "stream": True}
            return (await client.post(f"{url}/responses", json=body)).text

    lines = asyncio.run(ask()).split("\n")
    named = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [line for line in lines if line.startswith("data: ")]
    assert len(named) == len(data)
    assert all(f'"type":"{name}"' in line for name, line in zip(named, data, strict=True))
    assert "[DONE]" not in data[-1]
