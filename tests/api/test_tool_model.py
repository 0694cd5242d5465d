"""Calls and formats of a real model that is held to them: the embedded pair, by a template of ours.

The model has 135 million parameters and has never seen a tool. Whatever it is asked, the text is
that of plain decoding.
"""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import openai
import pytest

from runtime.api.of_edge import endpoint
from runtime.background import Background
from runtime.config import EdgeConfig
from runtime.edge.client import AsyncEdge
from tests.api.test_tool_chat import SCHEMA, WEATHER, tool
from tests.chat_templates import QWEN3
from tests.processes import running_server

QUESTION = [{"role": "user", "content": "What will the weather be in Rome for 3 days?"}]
TIME = tool("time", parameters={"type": "object", "properties": {}, "additionalProperties": False})
ASKED = {"model": "", "messages": QUESTION, "max_tokens": 200, "temperature": 0}
ONE = {"parallel_tool_calls": False, "tools": [WEATHER, TIME]}
WEATHER_ALONE = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[openai.OpenAI]]:
    """Of an edge that drafts, and of one that does not, both with conversations as Qwen3's."""
    path = tmp_path_factory.mktemp("template") / "tools.jinja"
    path.write_text(QWEN3, encoding="utf-8")
    # drafts are sent whether they pay or not
    server = ["--port", "0", "--threads", "1", "--kv-tokens", "8192", "--http", ""]
    background, stack = Background(), AsyncExitStack()

    async def begin(config: EdgeConfig) -> openai.OpenAI:
        edge = await stack.enter_async_context(AsyncEdge(config))
        url, _ = await stack.enter_async_context(endpoint(edge))
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    with running_server(*server, "--no-pipeline", "--credits", "open") as address:
        made = EdgeConfig(server=address, http="127.0.0.1:0", threads=1, chat_template=str(path))
        plain = EdgeConfig(**{**vars(made), "max_budget": 0})
        yield [background.run(begin(config)).result(120) for config in (made, plain)]
        background.run(stack.aclose()).result(60)
    background.stop()


def asked(clients, **body):
    """The answer with drafts, which is the one without."""
    drafted, plain = (client.chat.completions.create(**{**ASKED, **body}) for client in clients)
    assert told(drafted.choices[0]) == told(plain.choices[0])
    assert drafted.timings["draft_n"] > 0
    return drafted.choices[0]


def told(choice):
    calls = [call.function for call in choice.message.tool_calls or []]
    return choice.message.content, calls, choice.finish_reason


def calls_of(choice):
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    functions = [call.function for call in choice.message.tool_calls]
    return [(function.name, json.loads(function.arguments)) for function in functions]


def check_weather(arguments):
    assert isinstance(arguments["city"], str)
    assert arguments.keys() <= {"city", "days"}
    assert isinstance(arguments.get("days", 0), int)


def test_a_model_that_must_call_calls_validly(clients) -> None:
    ((name, arguments),) = calls_of(asked(clients, tool_choice="required", **ONE))
    assert name in ("weather", "time")
    ((name, arguments),) = calls_of(asked(clients, tool_choice=WEATHER_ALONE, **ONE))
    assert name == "weather"
    check_weather(arguments)


def test_sampled_calls_are_valid_and_the_same_with_drafts(clients) -> None:
    drawn = {"temperature": 1.0, "seed": 1, "tool_choice": WEATHER_ALONE}
    ((_, arguments),) = calls_of(asked(clients, **drawn, **ONE))
    check_weather(arguments)


def test_content_of_a_schema(clients) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    choice = asked(clients, response_format=form)
    assert choice.finish_reason == "stop"
    check_weather(json.loads(choice.message.content))


def test_what_may_be_called_and_is_strict_may_be_text_as_well(clients) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    choice = asked(clients, tools=[strict], max_tokens=24)
    assert choice.message.content or choice.message.tool_calls


def test_a_streamed_response_calls(clients) -> None:
    flat = {"type": "function", **WEATHER["function"]}
    with clients[0].responses.stream(
        model="smollm2",
        input=QUESTION[0]["content"],
        tools=[flat],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=100,
    ) as stream:
        response = stream.get_final_response()
    (call,) = response.output
    check_weather(json.loads(call.arguments))
    plain = clients[1].chat.completions.create(**{**ASKED, **ONE}, tool_choice=WEATHER_ALONE)
    assert calls_of(plain.choices[0]) == [("weather", json.loads(call.arguments))]
