"""`echo` of completions: the prompt in front of its answers, with what the model thinks of it.

The oracle is transformers' own model, run once over the whole text.
"""

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from runtime.api import echo
from runtime.api.of_edge import EdgeBackend
from tests.api.plain import plain, question

PROMPT = "The café, naïvely 😀"  # a token a byte, so that characters are cut
CONTROL = [256, 72, 257, 105]  # with a stop token and another one that have no text


@pytest.fixture(params=["edge", "server"])
def asked(request: pytest.FixtureRequest, url: str, tiny_openai: str) -> str:
    return url if request.param == "edge" else tiny_openai


@pytest.fixture(scope="module")
def tiny_openai(tiny_pair: tuple[Path, Path]):
    from runtime import Server, ServerConfig

    options = {"model": str(tiny_pair[0]), "threads": 1, "kv_tokens": 8192, "port": 0}
    with Server(ServerConfig(**options, http="127.0.0.1:0", openai="127.0.0.1:0")) as server:
        yield server.openai_url.removesuffix("/v1")


def ask(url: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/completions", json={"temperature": 0, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.inference_mode()
def truth(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of each token but the first."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return rows[range(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize("prompt", [PROMPT, CONTROL])
def test_a_prompt_comes_back_with_its_log_probabilities(
    asked: str, edge: EdgeBackend, tiny_pair: tuple[Path, Path], prompt: str | list[int]
) -> None:
    ids = edge.encode(prompt, raw=True)
    answer = ask(asked, prompt=prompt, echo=True, logprobs=3, max_tokens=5)
    (choice,) = answer["choices"]
    said = plain(edge, prompt, raw=True, temperature=0, max_tokens=5)
    spelled = prompt if isinstance(prompt, str) else "".join(map(edge.tokenizer.token, ids[:1]))
    assert choice["text"].startswith(spelled)
    assert choice["text"].endswith(said)
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    of_prompt = torch.tensor(told["token_logprobs"][1 : len(ids)])
    assert torch.allclose(of_prompt, truth(tiny_pair[0], ids), atol=1e-4)
    assert {len(told[name]) for name in told} == {len(ids) + 5}
    for own, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert own in top.values() or own < min(top.values())
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert "\ufffd" in token or choice["text"][offset:].startswith(token)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 5)


def test_without_an_answer_the_prompt_is_all(asked: str, edge: EdgeBackend) -> None:
    """Several prompts, and one too short for numbers."""
    answer = ask(asked, prompt=["Hi", "a"], echo=True, logprobs=0, max_tokens=0, n=2)
    assert [choice["text"] for choice in answer["choices"]] == ["Hi", "Hi", "a", "a"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    lengths = [len(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    ids = [len(edge.encode(prompt, raw=True)) for prompt in ("Hi", "a")]
    assert lengths == [ids[0], ids[0], ids[1], ids[1]]
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == sum(ids)


def test_a_stream_begins_with_the_prompt(asked: str) -> None:
    body = {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 6, "temperature": 0}
    whole = ask(asked, **body)["choices"][0]
    body["stream"] = True
    with httpx.stream("POST", f"{asked}/v1/completions", json=body, timeout=60) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
    chunks = [httpx.Response(200, text=line[6:]).json()["choices"][0] for line in lines]
    assert chunks[0]["text"] == PROMPT
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    told = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    for name, values in whole["logprobs"].items():
        assert [value for part in told for value in part[name]] == values


def test_a_long_prompt_is_asked_for_in_parts(
    url: str, edge: EdgeBackend, tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(echo, "MOST_TOKENS", 7)
    ids = edge.encode(PROMPT, raw=True)
    answer = ask(url, prompt=ids, echo=True, logprobs=0, max_tokens=0)
    told = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    assert torch.allclose(torch.tensor(told), truth(tiny_pair[0], ids), atol=1e-4)


def test_echo_alone_asks_the_model_for_no_numbers(url: str) -> None:
    (choice,) = ask(url, prompt="Hi", echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["logprobs"]) == ("Hi", None)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": question(), "echo": True}, "echo"),
        ("completions", {"prompt": "a", "echo": "yes"}, "echo"),
    ],
)
def test_where_there_is_no_echo_it_is_refused(
    url: str, path: str, body: dict[str, Any], param: str
) -> None:
    answer = httpx.post(f"{url}/v1/{path}", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_client_without_a_tokenizer_is_told_what_it_needs(url: str, edge: EdgeBackend) -> None:
    info = httpx.get(f"{url}/tokenizer_info", timeout=60).json()
    assert info["chat_template"] == edge.chat_template
    assert info["eos_token"] == edge.tokenizer.token(257)
    assert info["model_max_length"] == edge.max_context
