"""Who may ask an endpoint: programs with a key, pages of this machine, and nobody else's."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runtime.api.backend import UnknownKey
from runtime.api.guard import Guard
from runtime.api.keys import Keys


def ask(
    headers: dict[str, str],
    method: str = "GET",
    origins: Sequence[str] = (),
    has_keys: bool = False,
) -> httpx.Response:
    async def page(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def scenario() -> httpx.Response:
        app = Guard(Starlette(routes=[Route("/", page)]), origins, has_keys)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, "/", headers=headers)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://localhost",
        "http://127.0.0.1",
        "http://127.1.2.3:80",
        "http://[::1]:9",
    ],
)
def test_pages_of_this_machine_may_ask(origin: str) -> None:
    answer = ask({"Origin": origin})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example#localhost",
        "http://[::1",
        "",
        "file://",
    ],
)
def test_pages_of_strangers_may_not(origin: str) -> None:
    for headers in ({}, {"Access-Control-Request-Method": "POST"}):
        answer = ask({"Origin": origin, **headers}, "OPTIONS" if headers else "GET")
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert "access-control-allow-origin" not in answer.headers


def test_pages_that_are_named_may_ask() -> None:
    page = {"Origin": "https://chat.example"}
    assert ask(page, origins=["https://chat.example"]).status_code == 200
    assert ask(page, origins=["https://chat.example.org"]).status_code == 403
    assert ask(page, origins=["*"]).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8401", "192.168.1.7:8401", "[::"])
def test_a_name_that_was_pointed_here_is_refused_where_there_is_no_key(host: str) -> None:
    assert ask({"Host": host}).status_code == 403
    assert ask({"Host": host}, has_keys=True).status_code == 200


@pytest.mark.parametrize("host", ["localhost:8401", "127.0.0.1", "[::1]:8401"])
def test_the_names_of_this_machine_are_its_own(host: str) -> None:
    assert ask({"Host": host}).status_code == 200


def test_a_browser_asks_before_it_asks() -> None:
    asked = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    answer = ask(asked, "OPTIONS")
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]


def test_a_key_is_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def noted(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare(given, known)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    tokens = {name: (name * 40).encode() for name in "abc"}
    keys = Keys(tokens)
    for name in "abc":
        compared.clear()
        assert keys.name_of(name * 40) == name
        assert compared == [hashlib.sha256(token).digest() for token in tokens.values()]
    for wrong in (None, "", "d" * 40, "a" * 39, "ä" * 40):
        with pytest.raises(UnknownKey):
            keys.name_of(wrong)
