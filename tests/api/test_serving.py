"""Requests that are begun and not ended keep nobody out; answers may take as long as they do."""

import asyncio
import json
from contextlib import suppress

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


def unended(**headers: str) -> tuple[Starlette, asyncio.Event]:
    """An app whose streams begin and do not end, and what says that one was cancelled."""
    cancelled = asyncio.Event()

    async def parts(request: Request):
        try:
            yield b"first"
            while "large" in request.url.path:
                yield b"more" * 10_000
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts(request), headers=headers)

    async def never(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    return Starlette(
        routes=[Route("/", stream), Route("/large", stream), Route("/never", never)]
    ), cancelled


@pytest.mark.parametrize("path", ["/", "/never"])
def test_what_is_being_answered_at_the_end_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """A stream with its last chunk, what has not begun with an error; the log has nothing."""
    monkeypatch.setattr(module, "END_S", 0.05)

    async def scenario() -> bytes:
        app, cancelled = unended()
        async with serving("127.0.0.1:0", app) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
            writer.write(HALF_HEAD.replace(b"/", path.encode(), 1) + b"\r\n")
            told = await reader.readuntil(b"first") if path == "/" else b""
        assert cancelled.is_set()
        told += await reader.read()
        writer.close()
        return told

    told = asyncio.run(asyncio.wait_for(scenario(), 60))
    if path == "/":
        assert told.startswith(b"HTTP/1.1 200 ")
        assert told.endswith(b"first\r\n0\r\n\r\n")
    else:
        head, _, body = told.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"is stopping" in json.loads(body)["error"]["message"].encode()
    assert not caplog.records


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Length": "1000000000"}], ids=["stream", "of a length"]
)
def test_who_does_not_take_the_end_of_an_answer_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "END_S", 0.05)

    async def scenario() -> None:
        app, _ = unended(**headers)
        async with serving("127.0.0.1:0", app) as url:
            place = ("127.0.0.1", url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection(*place, limit=1024)
            writer.write(HALF_HEAD.replace(b"/", b"/large", 1) + b"\r\n")
            await reader.readuntil(b"first")
        writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert not caplog.records


@pytest.mark.parametrize("times", [1, 2])
def test_an_end_that_is_cancelled_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """Each time at once with what is next, however long it would have waited."""
    monkeypatch.setattr(module, "END_S", 3600.0)

    async def serve(opened: asyncio.Future[str], app: Starlette) -> None:
        async with serving("127.0.0.1:0", app) as url:
            opened.set_result(url)
            await asyncio.Event().wait()

    async def scenario() -> bytes:
        app, cancelled = unended()
        opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        being_served = asyncio.ensure_future(serve(opened, app))
        port = (await opened).rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HALF_HEAD + b"\r\n")
        told = await reader.readuntil(b"first")
        for _ in range(1 + times):
            being_served.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.wait({being_served})
        assert cancelled.is_set()
        with suppress(ConnectionError):  # hung up on at the third
            told += await reader.read()
        writer.close()
        return told

    told = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert times == 2 or told.endswith(b"first\r\n0\r\n\r\n")
    assert not caplog.records


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
