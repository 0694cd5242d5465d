"""OpenAI's own client, unchanged, against an edge."""

from collections.abc import Iterator

import openai
import pytest

from runtime.api.of_edge import EdgeBackend
from tests.api.plain import plain, question

GREEDY = {"temperature": 0, "max_tokens": 24}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(edge: EdgeBackend) -> str:
    return edge.model


def test_a_chat_is_the_plain_text(client: openai.OpenAI, edge: EdgeBackend, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=question(), **GREEDY)
    assert answer.choices[0].message.content == plain(edge, question(), **GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(edge.encode(question()))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_streamed_chat_is_the_plain_text(
    client: openai.OpenAI, edge: EdgeBackend, model: str
) -> None:
    sampled = {"temperature": 0.8, "seed": 5, "max_tokens": 24}
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=question(),
            stream=True,
            stream_options={"include_usage": True},
            **sampled,
        )
    )
    *spoken, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert {chunk.id for chunk in chunks} == {last.id}
    deltas = [chunk.choices[0].delta for chunk in spoken]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == plain(edge, question(), **sampled)
    reasons = [chunk.choices[0].finish_reason for chunk in spoken]
    assert reasons == [None] * (len(spoken) - 1) + ["length"]


def test_a_completion_is_the_plain_text(
    client: openai.OpenAI, edge: EdgeBackend, model: str
) -> None:
    expected = plain(edge, "Once upon", raw=True, **GREEDY)
    for prompt in ("Once upon", edge.encode("Once upon", raw=True)):
        answer = client.completions.create(model=model, prompt=prompt, **GREEDY)
        assert answer.choices[0].text == expected
        chunks = client.completions.create(model=model, prompt=prompt, stream=True, **GREEDY)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_several_answers_have_seeds_of_their_own(
    client: openai.OpenAI, edge: EdgeBackend, model: str
) -> None:
    drawn = {"temperature": 1.0, "max_tokens": 8}
    answer = client.chat.completions.create(model=model, messages=question(), n=3, seed=7, **drawn)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [plain(edge, question(), seed=7 + i, **drawn) for i in range(3)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_models_tell_how_long_a_context_may_be(client: openai.OpenAI, edge: EdgeBackend) -> None:
    (only,) = client.models.list().data
    assert only.id == edge.model
    assert only.max_model_len == only.context_length == edge.max_context == 1024
    assert client.models.retrieve(only.id) == only


def test_what_cannot_be_is_refused_by_name(client: openai.OpenAI, model: str) -> None:
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        ask(model="other", messages=question())
    with pytest.raises(openai.BadRequestError, match="suffix would change the text") as refused:
        client.completions.create(model=model, prompt="a", suffix="b")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(model=model, messages=question(), temperature=-1)
    assert refused.value.param == "temperature"


def test_control_tokens_are_spelled_where_they_are_asked_for(edge: EdgeBackend) -> None:
    """As those that open the calls of some models."""
    start = edge.tokenizer.control_ids(["<|start|>"])
    always = {"logit_bias": dict.fromkeys(start, 100.0), "max_tokens": 3, "temperature": 0}
    assert plain(edge, question(), spelled=["<|start|>"], **always) == "<|start|>" * 3
    assert plain(edge, question(), **always) == ""
