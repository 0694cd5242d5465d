"""litellm and LangChain's OpenAI class, unchanged, against an edge."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm's prices come from the network else

import litellm
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI, OpenAI
from litellm.exceptions import BadRequestError, ContextWindowExceededError, NotFoundError

from runtime.api.of_edge import EdgeBackend
from tests.api.plain import plain, question

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic")

GREEDY = {"temperature": 0, "max_tokens": 16}


@pytest.fixture
def langchain(url: str, edge: EdgeBackend) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model=edge.model, max_retries=0, **GREEDY
    )


@pytest.fixture
def lite(url: str, edge: EdgeBackend) -> dict[str, object]:
    """How litellm is told of a server that speaks OpenAI's API."""
    return {"model": f"openai/{edge.model}", "api_base": f"{url}/v1", "api_key": "none", **GREEDY}


def test_litellm(lite: dict[str, object], edge: EdgeBackend) -> None:
    expected = plain(edge, question(), **GREEDY)
    answer = litellm.completion(messages=question(), **lite)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    chunks = list(litellm.completion(messages=question(), stream=True, **lite))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == expected


def test_litellm_tells_errors_apart(lite: dict[str, object]) -> None:
    with pytest.raises(BadRequestError, match="suffix"):
        litellm.completion(messages=question(), extra_body={"suffix": "x"}, **lite)
    with pytest.raises(NotFoundError):
        litellm.completion(messages=question(), **{**lite, "model": "openai/other"})
    with pytest.raises(ContextWindowExceededError):  # what its context_window_fallbacks wait for
        litellm.completion(messages=question("a" * 1024), **lite)


def test_langchain_knows_a_prompt_that_is_too_long(langchain: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        langchain.invoke("a" * 1024)


def test_langchain(langchain: ChatOpenAI, edge: EdgeBackend) -> None:
    expected = plain(edge, question("Why?"), **GREEDY)
    answer = langchain.invoke("Why?")
    assert answer.content == expected
    assert answer.usage_metadata["output_tokens"] == 16
    assert answer.response_metadata["finish_reason"] == "length"
    chunks = list(langchain.stream("Why?", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == expected
    assert (
        sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 16
    )
    assert [one.content for one in langchain.batch(["Why?", "Why?"])] == [expected] * 2


def test_langchain_completions(url: str, edge: EdgeBackend) -> None:
    model = OpenAI(base_url=f"{url}/v1", api_key="none", model=edge.model, max_retries=0, **GREEDY)
    assert model.invoke("Once upon") == plain(edge, "Once upon", raw=True, **GREEDY)
