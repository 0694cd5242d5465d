"""Requests that are begun and not ended keep nobody out; answers may take as long as they do."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from runtime.api import serving as module
from runtime.api.serving import serving

HALF_HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n"
HALF_BODY = b"POST /body HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n123"


@pytest.mark.parametrize("begun", [b"", HALF_HEAD, HALF_BODY], ids=["nothing", "head", "body"])
def test_half_a_request_ends_and_an_answer_goes_on(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.05)

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def stream(request: Request) -> Response:
            async def parts():
                yield b"first "
                await go_on.wait()
                yield b"last"

            return StreamingResponse(parts())

        async def body(request: Request) -> Response:
            return PlainTextResponse(await request.body())

        app = Starlette(routes=[Route("/", stream), Route("/body", body, methods=["POST"])])
        async with serving("127.0.0.1:0", app) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HALF_HEAD + b"\r\n")
            assert b"first " in await reader.readuntil(b"first ")
            # the answer above goes on while others run out of time, one after a whole request
            late, late_writer = await asyncio.open_connection("127.0.0.1", port)
            if begun:
                late_writer.write(HALF_BODY + b"456789")
                assert b"123456789" in await late.readuntil(b"123456789")
            late_writer.write(begun)
            assert await late.read() == b""
            go_on.set()
            assert b"last" in await reader.readuntil(b"last")
            for one in (writer, late_writer):
                one.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_who_asks_for_a_websocket_is_answered_and_no_library_is_said_to_be_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("a page")

    async def scenario() -> bytes:
        async with serving("127.0.0.1:0", Starlette(routes=[Route("/", page)])) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HALF_HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
            told = await reader.read()
            writer.close()
            return told

    assert asyncio.run(asyncio.wait_for(scenario(), 30)).endswith(b"a page")
    assert not caplog.records
