"""Requests that are begun and not ended keep nobody out; answers may take as long as they do."""

import asyncio
import json

import pytest
from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from runtime.api import serving as module
from runtime.api.app import told
from runtime.api.counting import GIVEN_UP, Counting
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


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


ECHO = Starlette(routes=[Route("/body", told(_echo), methods=["POST"])])
CHUNKED = b"POST %b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"


def told_in_full(answer: bytes, status: int) -> dict[str, object]:
    """The error of an answer that closes its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    assert b"content-length: %d" % len(body) in head.lower()
    return json.loads(body)["error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 100_000,
        b"POST /body HTTP/1.1\r\nHost: here\r\nContent-Length: many\r\n\r\n",
        CHUNKED % b"/body" + b"no length\r\n",
    ],
    ids=["garbage", "no host", "long", "length", "chunk"],
)
def test_what_is_no_http_is_an_error_in_openais_shape(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> bytes:
        async with serving("127.0.0.1:0", ECHO) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
            writer.write(sent)
            answer = await reader.read()
            writer.close()
            return answer

    error = told_in_full(asyncio.run(asyncio.wait_for(scenario(), 30)), 400)
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in caplog.text


def test_what_is_no_http_behind_an_answer_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No second answer can follow: the connection's other end would take it for more of the first.
    It was a traceback in the log."""

    async def scenario() -> bytes:
        async with serving("127.0.0.1:0", ECHO) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
            writer.write(CHUNKED % b"/nowhere")
            first = await reader.readuntil(b"Not Found")
            writer.write(b"no length\r\n")
            first += await reader.read()
            writer.close()
            return first

    answer = asyncio.run(asyncio.wait_for(scenario(), 30))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_leaves_in_the_middle_of_a_body_is_counted_and_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was a traceback in the log, for whoever pressed Ctrl-C."""

    async def scenario() -> None:
        over = asyncio.Event()
        answered: list[tuple[str, int]] = []

        def note(route: str, status: int) -> None:
            answered.append((route, status))
            over.set()

        async with serving(
            "127.0.0.1:0", Counting(ECHO, ECHO.routes, note, Gauge("open", "", registry=None))
        ) as url:
            _, writer = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
            writer.write(HALF_BODY)
            await writer.drain()
            writer.close()
            await over.wait()
        assert answered == [("/body", GIVEN_UP)]

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert not [record for record in caplog.records if record.exc_info]


def test_one_connection_too_many_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """Those that are open and ask nothing count; when one is gone there is room again."""

    async def scenario() -> None:
        async with serving("127.0.0.1:0", ECHO, most=2) as url:
            place = ("127.0.0.1", url.rpartition(":")[2])
            idle = [await asyncio.open_connection(*place) for _ in range(2)]
            for _, writer in idle:  # an answer: the server knows of them
                writer.write(HALF_BODY + b"456789")
            for reader, _ in idle:
                await reader.readuntil(b"123456789")
            reader, writer = await asyncio.open_connection(*place)
            writer.write(HALF_BODY + b"456789")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert b"3 connections are open" in await reader.readuntil(b"}}")
            idle[0][1].close()
            await idle[0][0].read()
            while True:
                writer.write(HALF_BODY + b"456789")
                if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 "):
                    break
                await reader.readuntil(b"}}")
            writer.close()
            idle[1][1].close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert "Traceback" not in caplog.text


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
