"""What is not here, as OpenAI's own client asks for it: an error that says what there is."""

import asyncio
import re
from pathlib import Path

import httpx
import openai
import pytest

from runtime.api.absent import NOT_STORED, REASONS
from runtime.api.app import application
from tests.api.scripted import Scripted, served
from tests.api.test_malformed import check
from tests.chat_templates import CHATML

HERE = {
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"),
    *("GET /v1/models", "POST /v1/responses/input_tokens"),
}


def paths_of_the_client() -> set[str]:
    """Those of all its resources, below /v1."""
    resources = Path(openai.__file__).parent / "resources"
    paths = set()
    for module in resources.rglob("*.py"):
        paths |= set(re.findall(r'"(/[a-z_]+[^"?\s]*)', module.read_text(encoding="utf-8")))
    found = {re.sub(r"\{\w+\}", "x1", path.removeprefix("/v1")) for path in paths}
    assert {"/chat/completions", "/batches/x1/cancel", "/vector_stores/x1/files"} <= found
    return found


def ask(requests: list[tuple[str, str]]) -> list[httpx.Response]:
    async def backend_of(key: str | None) -> Scripted:
        return Scripted(CHATML, "")

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application(backend_of))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, path, json={}) for method, path in requests]

    return asyncio.run(ask_all())


def test_all_that_openais_client_asks_for_is_there_or_said_to_be_absent() -> None:
    asked = [
        (method, f"/v1{path}")
        for path in sorted(paths_of_the_client())
        for method in ("GET", "POST", "DELETE")
        if f"{method} /v1{path}" not in HERE
    ]
    assert len(asked) > 100
    for (method, path), answer in zip(asked, ask(asked), strict=True):
        if path == "/v1/models/x1" and method == "GET":
            continue  # of a model that is not there
        error = check(answer)
        assert answer.status_code in (404, 405, 501), (method, path, answer.text)
        assert error["message"] == NOT_STORED or error["message"].startswith(f"{method} {path}")
        assert len(error["message"]) > len(f"{method} {path}: ") + 15
        if answer.status_code == 501:
            assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_is_told(name: str) -> None:
    for answer in ask([("POST", f"/v1/{name}"), ("GET", f"/v1/{name}/x1/y")]):
        assert answer.status_code == 501
        assert check(answer)["message"].endswith(REASONS[name])


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/x/completions", "/v1/completions"),
        ("/responses", "/v1/responses"),
        ("/responses/input_tokens", "/v1/responses/input_tokens"),
    ],
)
def test_a_base_url_that_does_not_end_so_is_told(path: str, meant: str) -> None:
    (answer,) = ask([("POST", path)])
    assert answer.status_code == 404
    assert f"did you mean {meant}? The base URL of a client ends with /v1" in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/input_tokens"),
    ],
)
def test_a_slash_too_many_is_told(method: str, path: str) -> None:
    """A redirect would have no body that a client could show, and not all of them follow one."""
    (answer,) = ask([(method, f"{path}/")])
    assert answer.status_code == 404
    assert check(answer)["message"] == f"{method} {path}/ is not here; did you mean {path}?"


def test_other_paths_and_methods_are_told_what_there_is() -> None:
    lost, other = ask([("POST", "/v1/messages"), ("DELETE", "/v1/models/x")])
    assert lost.status_code == 404
    for there in HERE:
        assert there in check(lost)["message"]
    assert other.status_code == 405
    assert check(other)["message"] == "DELETE /v1/models/x: this path takes GET"
    assert sorted(other.headers["allow"].split(", ")) == ["GET", "HEAD"], "in whatever order"


def test_openais_client_does_not_try_again_what_is_never_there() -> None:
    """As it would after any other status of 500 or more."""
    asked = []

    async def note(request: httpx.Request) -> None:
        asked.append(request.url.path)

    async def embed() -> None:
        async with (
            served(Scripted(CHATML, "")) as url,
            httpx.AsyncClient(event_hooks={"request": [note]}, timeout=60) as http,
        ):
            client = openai.AsyncOpenAI(
                base_url=url, api_key="none", max_retries=5, http_client=http
            )
            with pytest.raises(openai.InternalServerError, match="it has no embeddings") as told:
                await client.embeddings.create(model="scripted", input="x")
            assert told.value.status_code == 501

    asyncio.run(embed())
    assert asked == ["/v1/embeddings"]
