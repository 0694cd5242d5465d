"""Tools with litellm and LangChain's OpenAI class, unchanged, whole and streamed."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm's prices come from the network else

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import litellm
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from runtime.background import Background
from tests.api.scripted import TOKENIZER, Scripted, served
from tests.api.test_tool_chat import TWO, WEATHER
from tests.chat_templates import QWEN3

TEXT = "<think>\nHm.\n</think>\n\nOne moment.\n" + TWO
CITIES = ["Köln", "Rom"]


@pytest.fixture(scope="module")
def backend() -> Scripted:
    return Scripted(QWEN3, TEXT)


@pytest.fixture(scope="module")
def url(backend: Scripted) -> Iterator[str]:
    background, stack = Background(), AsyncExitStack()
    yield background.run(stack.enter_async_context(served(backend))).result(60)
    background.run(stack.aclose()).result(60)
    background.stop()


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


def test_litellm(url: str) -> None:
    asked = {
        "model": "openai/scripted",
        "api_base": url,
        "api_key": "none",
        "messages": [{"role": "user", "content": "What is the weather?"}],
        "tools": [WEATHER],
        "tool_choice": "auto",
    }
    chunks = list(litellm.completion(**asked, stream=True))
    for answer in (litellm.completion(**asked), litellm.stream_chunk_builder(chunks)):
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "One moment."
        assert choice.message.reasoning_content == "Hm."
        calls = choice.message.tool_calls
        assert [call.function.name for call in calls] == ["weather"] * 2
        assert [json.loads(call.function.arguments)["city"] for call in calls] == CITIES
        assert len({call.id for call in calls}) == 2


def test_langchain(url: str, backend: Scripted) -> None:
    model = ChatOpenAI(base_url=url, api_key="none", model="scripted", max_retries=0)
    bound = model.bind_tools([weather])
    question = HumanMessage("What is the weather?")
    whole = bound.invoke([question])
    streamed = None
    for chunk in bound.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    for answer in (whole, streamed):
        assert answer.content == "One moment."
        assert [call["args"]["city"] for call in answer.tool_calls] == CITIES
        assert answer.invalid_tool_calls == []
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    # its own next turn, with what the tools said
    results = [
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
        for call in whole.tool_calls
    ]
    bound.invoke([question, whole, *results])
    prompt = TOKENIZER.decode(backend.asked[-1][0])
    assert TWO in prompt
    assert prompt.index("rain in Köln") < prompt.index("rain in Rom")


def test_langchain_asks_for_one_function(url: str, backend: Scripted) -> None:
    model = ChatOpenAI(base_url=url, api_key="none", model="scripted", max_retries=0)
    model.bind_tools([weather], tool_choice="weather", strict=True).invoke("What?")
    constraint = backend.asked[-1][1]["constraint"]
    assert constraint.kind == "lark"
    assert "weather" in constraint.text
    model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke("What?")
    assert backend.asked[-1][1]["constraint"].kind == "lark"
    model.bind_tools([weather]).invoke("What?")
    assert "constraint" not in backend.asked[-1][1]
    schema = {"title": "x", "type": "object", "properties": {"x": {"type": "integer"}}}
    with_format = model.with_structured_output(schema, method="json_schema")
    with pytest.raises(ValueError, match="json"):  # the script's text is none
        with_format.invoke("What?")
    assert backend.asked[-1][1]["constraint"].kind == "lark", "thoughts may come first"
