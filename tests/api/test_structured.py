"""Answers of a form, over HTTP: they have it, and are those of plain decoding within it."""

import json
import re
from typing import Any

import httpx
import openai
import pytest

from runtime.api.of_edge import EdgeBackend
from runtime.constraint import Constraint
from tests.api.plain import plain, question

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}
DRAWN = {"temperature": 1.0, "seed": 2, "max_tokens": 200}


def check(value: Any) -> None:
    assert value.keys() == {"colour", "sure"}
    assert value["colour"] in ("red", "blue")
    assert isinstance(value["sure"], bool)


def test_openai_gets_json_of_a_schema(url: str, edge: EdgeBackend) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=edge.model, messages=question(), response_format=wanted, **DRAWN
        )
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        check(json.loads(text))
        constraint = Constraint("json_schema", json.dumps(SCHEMA))
        assert text == plain(edge, question(), constraint=constraint, **DRAWN)
        wanted["json_schema"]["schema"] = {"type": "array", "items": {}, "uniqueItems": True}
        streamed = {"response_format": wanted, "stream": True}
        with pytest.raises(openai.BadRequestError, match="uniqueItems"):
            client.chat.completions.create(model=edge.model, messages=question(), **streamed)


@pytest.mark.parametrize(
    ("structured", "expected"),
    [
        ({"choice": ["a.b", "(c"]}, r"a\.b|\(c"),
        ({"choice": ["a\n\t&~#- b", 'é\n"\\']}, 'a\n\t&~#- b|é\n"\\\\'),
        ({"regex": "[0-9]{3}-x"}, "[0-9]{3}-x"),
        ({"json": SCHEMA}, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_vllm_s_names(url: str, path: str, structured: dict[str, Any], expected: str) -> None:
    body = {"prompt": "Once", "messages": question(), "structured_outputs": structured, **DRAWN}
    (choice,) = httpx.post(url + path, json=body, timeout=60).json()["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    if expected is None:
        check(json.loads(text))
    else:
        assert re.fullmatch(expected, text)


def test_a_completion_may_be_json(url: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    body = {"prompt": "Once", "response_format": wanted, **DRAWN}
    (choice,) = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
    check(json.loads(choice["text"]))
