"""What a request says of how to draw, against plain decoding by the library."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from runtime.api.of_edge import EdgeBackend
from runtime.edge.answer import TokenLogprob
from tests.api.plain import plain, question

RULES: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
    ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
    (
        {"presence_penalty": -0.7, "temperature": 0.9},
        {"presence_penalty": -0.7, "temperature": 0.9},
    ),
    ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"repeat_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"logit_bias": {"65": 100}}, {"logit_bias": {65: 100.0}}),
    (
        {"temperature": 1.2, "top_k": 5, "min_p": 0.05},
        {"temperature": 1.2, "top_k": 5, "min_p": 0.05},
    ),
    ({"temperature": 0.8, "top_p": 0.5, "top_k": -1}, {"temperature": 0.8, "top_p": 0.5}),
    ({"temperature": 1.2, "top_p": 0}, {}),
    (
        {"temperature": 1.2, "top_p": 0, "min_p": 0.1, "frequency_penalty": 1},
        {"frequency_penalty": 1},
    ),
    ({"stop": ["e", "zz"]}, {"stop": ("e", "zz")}),
    ({"temperature": None}, {"temperature": 1.0}),
]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_an_option_means_what_the_library_means(url: str, edge: EdgeBackend, number: int) -> None:
    said, meant = RULES[number]
    body = {"messages": question(), "max_tokens": 24, "seed": 3, "temperature": 0, **said}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    options = {"max_tokens": 24, "seed": 3, "temperature": 0.0, **meant}
    assert answer["choices"][0]["message"]["content"] == plain(edge, question(), **options)


def entries(edge: EdgeBackend, prompt: object, **options: Any) -> list[TokenLogprob]:
    """What the library says of the tokens of plain decoding."""

    async def ask() -> list[TokenLogprob]:
        answer = edge.edge.generate(prompt, max_budget=0, **options)
        await answer.text
        return answer.logprobs

    return asyncio.run(ask())


def events(url: str, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = httpx.post(url + path, json={**body, "stream": True}, timeout=60).text
    lines = [line for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_chat_tells_log_probabilities(url: str, edge: EdgeBackend) -> None:
    drawn = {"temperature": 0.8, "seed": 4, "max_tokens": 12}
    body = {"messages": question(), "logprobs": True, "top_logprobs": 3, **drawn}
    (choice,) = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"]
    told = choice["logprobs"]["content"]
    known = entries(edge, question(), logprobs=3, **drawn)
    assert len(told) == len(known) == 12
    for one, entry in zip(told, known, strict=True):
        assert one["logprob"] == pytest.approx(entry.logprob, abs=1e-5)
        assert one["bytes"] == list(edge.tokenizer.token_bytes.get(entry.token, first=False) or b"")
        likeliest = [(likely["token"], likely["logprob"]) for likely in one["top_logprobs"]]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, key=lambda pair: -pair[1])
    spelled = bytes(byte for one in told for byte in one["bytes"])
    assert spelled.decode(errors="replace") == choice["message"]["content"]
    chunks = events(url, "/v1/chat/completions", body)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    parts = [one for part in streamed if part for one in part["content"]]
    assert [one["bytes"] for one in parts] == [one["bytes"] for one in told]
    logprobs = [one["logprob"] for one in told]
    assert [one["logprob"] for one in parts] == pytest.approx(logprobs, abs=1e-5)


def test_a_response_tells_those_of_a_chat(url: str) -> None:
    drawn = {"temperature": 0.8, "seed": 4, "top_logprobs": 3}
    chat = {"messages": question(), "max_tokens": 12, "logprobs": True, **drawn}
    (choice,) = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).json()["choices"]
    body = {"input": "Why?", "max_output_tokens": 12, **drawn}
    (item,) = httpx.post(f"{url}/v1/responses", json=body, timeout=60).json()["output"]
    assert item["content"][0]["text"] == choice["message"]["content"]
    assert item["content"][0]["logprobs"] == choice["logprobs"]["content"]


def test_a_completion_tells_log_probabilities(url: str, edge: EdgeBackend) -> None:
    body = {"prompt": "Once", "logprobs": 2, "temperature": 0, "max_tokens": 10}
    (choice,) = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
    told = choice["logprobs"]
    known = entries(edge, "Once", raw=True, logprobs=2, temperature=0.0, max_tokens=10)
    assert told["token_logprobs"] == pytest.approx([one.logprob for one in known], abs=1e-5)
    offsets = told["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    # greedy: each token is the likeliest, and begins where the text before it ends
    for token, likely, offset in zip(told["tokens"], told["top_logprobs"], offsets, strict=True):
        assert token == max(likely, key=lambda name: likely[name])
        assert "\ufffd" in token or choice["text"].startswith(token, offset)
    chunks = [chunk["choices"][0]["logprobs"] for chunk in events(url, "/v1/completions", body)]
    for name in ("tokens", "text_offset"):
        assert [one for chunk in chunks if chunk for one in chunk[name]] == told[name]


def test_they_are_not_told_unasked(url: str) -> None:
    body = {"messages": question(), "max_tokens": 3, "logprobs": False}
    (choice,) = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"]
    assert choice["logprobs"] is None


def test_usage_counts_drafts_and_what_was_in_the_cache(url: str, edge: EdgeBackend) -> None:
    body = {"messages": question("Why " * 20), "max_tokens": 30, "temperature": 0}
    for _ in range(2):
        told = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    usage, timings = told["usage"], told["timings"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == timings["draft_n_accepted"]
    drafted = details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"]
    assert drafted == timings["draft_n"]
    assert timings["predicted_n"] == usage["completion_tokens"] == 30


# what makes the tiny model's stop token the likeliest everywhere
ENDS = {"logit_bias": {"257": 99}, "temperature": 0, "prompt": "Once"}


@pytest.mark.parametrize(
    "longest",
    [
        {"ignore_eos": True, "max_tokens": 20},
        {"min_tokens": 20, "max_tokens": 20},
        {"ignore_eos": True, "min_tokens": 5, "max_tokens": 20},
    ],
)
def test_an_answer_may_be_as_long_as_it_is_allowed_to(
    url: str, edge: EdgeBackend, longest: dict[str, Any]
) -> None:
    """Whatever a model would rather say; otherwise the same text."""
    ended = httpx.post(f"{url}/v1/completions", json={**ENDS, "max_tokens": 20}, timeout=60).json()
    assert ended["choices"][0]["finish_reason"] == "stop"
    answer = httpx.post(f"{url}/v1/completions", json={**ENDS, **longest}, timeout=60).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 20)
    never = {"logit_bias": {257: -100.0}, "temperature": 0.0, "max_tokens": 20}
    assert choice["text"] == plain(edge, "Once", raw=True, **never)


def test_a_chat_and_a_response_go_on_as_well(url: str) -> None:
    ends = {"logit_bias": {"257": 99}, "temperature": 0, "ignore_eos": True}
    chat = {**ends, "messages": question(), "max_completion_tokens": 9}
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 9
    asked = {**ends, "input": "Why?", "max_output_tokens": 9}
    answer = httpx.post(f"{url}/v1/responses", json=asked, timeout=60).json()
    assert answer["usage"]["output_tokens"] == 9


@pytest.mark.parametrize(
    "asked",
    [
        {"min_tokens": 5, "max_tokens": 20},
        {"min_tokens": 25, "max_tokens": 20, "ignore_eos": True},
        {"min_tokens": 20, "max_tokens": 20, "stop": ["."]},
        {"min_tokens": 20},
    ],
)
def test_a_least_length_that_would_not_be_kept_is_refused(url: str, asked: dict[str, Any]) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", **asked}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "min_tokens")
