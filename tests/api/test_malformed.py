"""Bodies of any kind: an answer, or an error in OpenAI's shape that names what is wrong."""

import asyncio
import gzip
import json
import re
import sys
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.api.app import application
from runtime.api.bodies import MAX_BODY_BYTES, MAX_DEPTH, NEUTRAL
from runtime.api.errors import TYPES
from runtime.api.of_edge import EdgeBackend
from runtime.edge.net.link import ServerError

PATHS = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
MESSAGES = [{"role": "user", "content": "Why?"}]
FIELDS = [
    *("model", "messages", "prompt", "content", "tokens", "stream", "stream_options", "n", "seed"),
    *("max_tokens", "max_completion_tokens", "stop", "temperature", "top_p", "min_p", "top_k"),
    *sorted(NEUTRAL),
]
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, -(2**63), 1e308, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
messages = st.lists(
    st.one_of(
        values,
        st.fixed_dictionaries(
            {"role": st.one_of(st.sampled_from(["user", "system", "assistant", "tool"]), values)},
            optional={"content": values, "tool_calls": values, "name": values},
        ),
    ),
    max_size=3,
)
bodies = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 2, None, 0, "x"])},
    optional={
        **{name: values for name in FIELDS if name not in ("max_tokens", "messages", "n")},
        "messages": st.one_of(messages, values),
        "n": st.one_of(
            st.sampled_from([1, 2, 0, None]),
            scalars.filter(lambda n: n != n or n not in range(3, 129)),
        ),
    },
)


@pytest.fixture(scope="session")
def client(served: tuple[str, EdgeBackend]) -> httpx.Client:
    return httpx.Client(base_url=served[0], timeout=60)


def check(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer that is one; in a stream it may come later."""
    if answer.status_code == 200:
        assert "Traceback" not in answer.text
        return {}
    assert answer.status_code in TYPES, answer.text
    (error,) = answer.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert error["type"] == TYPES[answer.status_code]
    return error


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25)
@given(body=bodies)
def test_any_json_is_answered(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    check(client.post(path, content=json.dumps(body)))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=15)
@given(body=st.binary(max_size=40))
def test_any_bytes_are_answered(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400
    check(answer)


@pytest.mark.parametrize("unknown", [260, 2**31 - 1])
def test_ids_of_no_token_have_no_text(client: httpx.Client, unknown: int) -> None:
    ids = client.post("/tokenize", json={"content": "Hi"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json()["content"] == "Hi"
    answer = client.post("/detokenize", json={"tokens": [*ids, unknown]})
    assert (answer.status_code, check(answer)["param"]) == (400, "tokens")
    assert f"token id {unknown} is none of" in check(answer)["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "no role"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": [3]}, "stop[0]"),
        ({"seed": 2**64}, "seed"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"not": {}}}, "stream": True}, "structured_outputs"),
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}}, "response_format"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"chat_template_kwargs": {"date": "x"}}, "chat_template_kwargs"),
        ({"metadata": json.loads("[" * 99 + "]" * 99)}, "metadata"),
    ],
)
def test_an_error_names_its_field(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400
    error = check(answer)
    assert error["param"] == param
    assert not re.search(r"\w= ", error["message"]), "a field is not spelled as an option of Python"


@pytest.mark.parametrize("wrong", [101, -100.5, "much", "1", True, None, [1], {"a": 1}])
def test_an_error_names_the_token_whose_bias_is_wrong(client: httpx.Client, wrong: object) -> None:
    fields = {"logit_bias": {"7": 1, "65": wrong}, "messages": MESSAGES, "stream": True}
    answer = client.post("/v1/chat/completions", json=fields)
    assert (answer.status_code, check(answer)["param"]) == (400, "logit_bias")
    told = f"logit_bias has {wrong!r} for token 65; expected a number from -100 to 100"
    assert check(answer)["message"] == told


@pytest.mark.parametrize("wrong", ["a", "1.5", "-1", "01", " 1", "", "\u0661", "9" * 9999])
def test_an_error_names_what_is_no_token_of_a_bias(client: httpx.Client, wrong: str) -> None:
    fields = {"logit_bias": {"7": 1, wrong: 1}, "messages": MESSAGES}
    answer = client.post("/v1/chat/completions", json=fields)
    assert (answer.status_code, check(answer)["param"]) == (400, "logit_bias")
    told = f"logit_bias has the token {wrong!r:.40}; expected an id"
    assert check(answer)["message"] == told


@pytest.mark.parametrize(
    "fields",
    [
        {"add_generation_prompt": False},  # vLLM's
        {"skip_special_tokens": False},
        {"thinking_token_budget": 0},
        {"structural_tag": "{}"},
        {"regex": "yes|no"},  # SGLang's
        {"stop_regex": "a+"},
        {"lora_path": "other"},
        {"lora": [{"id": 0, "scale": 0.5}]},  # llama.cpp's
        {"n_predict": 3},
        {"top_n_sigma": 1.0},
        {"reasoning_budget": 0},
        {"enable_thinking": False},  # DashScope's; here it is one of chat_template_kwargs
        {"thinking": {"type": "disabled"}},  # DeepSeek's
        {"top_a": 0.2},  # OpenRouter's
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_other_servers_know_and_would_change_the_text_is_refused(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    answer = client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 400
    error = check(answer)
    assert [error["param"]] == list(fields)
    assert error["code"] == "unsupported_parameter"


def test_what_is_unknown_or_says_nothing_is_passed_over(client: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "user": "me", "store": False, "x": {"y": [1]}}
    body |= {name: None for name in FIELDS if name not in ("messages", "max_tokens")}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    for name, neutral in NEUTRAL.items():
        for value in neutral:
            body = {"messages": MESSAGES, "max_tokens": 1, name: value}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, (name, value, answer.text)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
def test_a_body_that_is_encoded_is_told(client: httpx.Client, encoding: str) -> None:
    body = gzip.compress(json.dumps({"messages": MESSAGES}).encode())
    headers = {"content-encoding": encoding}
    answer = client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert check(answer)["message"] == f"the body is encoded as '{encoding}'; send it as it is"
    whole = {"messages": MESSAGES, "max_tokens": 1}
    headers["content-encoding"] = "identity"
    assert client.post("/v1/chat/completions", json=whole, headers=headers).status_code == 200


def test_a_body_is_bounded_in_length_and_depth(client: httpx.Client) -> None:
    long = b'{"messages": "' + b"a" * MAX_BODY_BYTES + b'"}'
    assert client.post("/v1/chat/completions", content=long).status_code == 413
    deep = {"messages": MESSAGES, "metadata": json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)}
    assert client.post("/v1/chat/completions", json={**deep, "max_tokens": 1}).status_code == 200
    for depth in (10_000, 1_000_000):
        answer = client.post("/v1/chat/completions", content=b'{"metadata": ' + b"[" * depth)
        assert answer.status_code == 400
        check(answer)


@pytest.mark.parametrize("half", [r"\ud83d", r"\ud83d\ud83d\ude00", r"\ude00 x"])
def test_half_a_character_is_named(client: httpx.Client, half: str) -> None:
    body = f'{{"prompt": "{half}"}}'.encode()
    error = check(client.post("/v1/completions", content=body))
    assert "is half of a character (a lone surrogate)" in error["message"]
    cut = check(client.post("/v1/completions", content=rb'{"prompt": "\ud83d\ude00'))
    assert "surrogate" not in cut["message"]


def test_paths_and_methods_that_are_not_there(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.post("/v1/models").status_code == 405
    refused = client.get("/v1/chat/completions")
    assert refused.status_code == 405
    assert check(refused)
    assert refused.headers["allow"] == "POST"
    assert (
        check(client.post("/v1/embeddings", json={"input": "a"}))["type"] == "not_implemented_error"
    )


def test_a_prompt_that_is_too_long_is_told_as_openai_tells_it(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a" * 1024, "stream": True})
    assert answer.status_code == 400
    error = check(answer)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    answer = client.post("/v1/completions", json={"prompt": "a" * 1023, "max_tokens": 9}).json()
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["finish_reason"] == "length"


def test_ids_that_the_model_lacks_are_refused(client: httpx.Client) -> None:
    for prompt in ([1, 2, 999], [-1], [[1], [2, 300]], [1, "a"], [[]], [], [True], [1.0]):
        answer = client.post("/v1/completions", json={"prompt": prompt})
        assert answer.status_code == 400, (prompt, answer.text)
        check(answer)


def test_an_error_leaves_nothing_running(
    client: httpx.Client, edge: EdgeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it of the last prompt, or of the last answer to one."""
    asked = []
    generate = edge.generate

    def noted(*args: Any, **options: Any) -> Any:
        if len(asked) == 2:
            raise ServerError("the server is gone")
        asked.append(generate(*args, **options))
        return asked[-1]

    monkeypatch.setattr(edge, "generate", noted)
    body = {"prompt": [[1], [2, 999]], "max_tokens": 900, "stream": True}
    assert client.post("/v1/completions", json=body).status_code == 400
    assert not asked
    answer = client.post("/v1/completions", json={**body, "prompt": [1], "n": 3})
    assert answer.status_code == 503
    for one in asked:
        one._stream.more(sys.maxsize).result(60)  # when it has ended
        assert one.finish_reason == "cancelled"


def test_a_fault_of_ours_is_an_error_of_their_shape() -> None:
    async def backend_of(key: str | None) -> EdgeBackend:
        raise RuntimeError("a fault")

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(application(backend_of), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/models")

    answer = asyncio.run(scenario())
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "a fault" not in answer.text
