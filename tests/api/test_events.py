"""The bytes of a stream, over a plain socket: what every client has to make sense of."""

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from runtime.api.of_edge import EdgeBackend
from tests.api.scripted import Scripted, served
from tests.chat_templates import CHATML

LONG = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 800, "temperature": 0}


class Raw:
    """A connection on which a request has been sent."""

    def __init__(self, url: str, path: str, body: object, headers: str = "") -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=60)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\n{headers}"
        self.socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        self.headers = dict(
            line.decode().rstrip().lower().split(": ", 1)
            for line in iter(self.file.readline, b"\r\n")
        )

    def chunks(self) -> Iterator[bytes]:
        """What each write of the server was."""
        while length := int(self.file.readline(), 16):
            yield self.file.read(length + 2)[:-2]

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_an_event_is_one_line_to_whoever_splits_as_python_does(path: str) -> None:
    """httpx's iter_lines also ends a line at three characters that JSON may write as they are."""
    text = "one\x85two\u2028three\u2029four"
    body = {"messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "stream": True}

    async def ask() -> list[str]:
        async with (
            served(Scripted(CHATML, text)) as url,
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", f"{url}/{path}", json=body) as answer,
        ):
            return [line async for line in answer.aiter_lines() if line]

    lines = [line for line in asyncio.run(ask()) if not line.startswith((":", "event: "))]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "[DONE]" not in line]
    pieces = [
        event.get("delta", "")
        if path == "responses"
        else event["choices"][0]["delta"].get("content")
        for event in events
    ]
    assert "".join(piece or "" for piece in pieces) == text


@pytest.mark.parametrize("include_usage", [False, True])
def test_every_event_ends_with_a_blank_line(url: str, include_usage: bool) -> None:
    body = {**LONG, "max_tokens": 12, "stream": True, "n": 2}
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    raw = Raw(url, "/v1/chat/completions", body)
    assert raw.status == 200
    assert raw.headers["content-type"].startswith("text/event-stream")
    first, *events = raw.chunks()
    raw.close()
    assert first.startswith(b":")
    assert all(event.endswith(b"\n\n") and event.count(b"\n\n") == 1 for event in [first, *events])
    *events, done = [event for event in events if not event.startswith(b":")]
    assert done == b"data: [DONE]\n\n"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert len({chunk["id"] for chunk in chunks}) == 1
    if include_usage:
        assert chunks.pop()["choices"] == []
        assert {chunk["usage"] for chunk in chunks} == {None}
    else:
        assert not any("usage" in chunk for chunk in chunks)
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [c["delta"].get("role") for c in choices] == ["assistant"] + [None] * (
            len(choices) - 1
        )
        reasons = [choice["finish_reason"] for choice in choices]
        assert reasons == [None] * (len(choices) - 1) + ["length"]
        assert choices[-1]["delta"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_answers(
    url: str, edge: EdgeBackend, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, before they have reached their ends."""
    answers = []
    generate = edge.generate

    def noted(*args: object, **options: object) -> object:
        answers.append(generate(*args, **options))
        return answers[-1]

    monkeypatch.setattr(edge, "generate", noted)
    where = urlsplit(url)
    content = json.dumps({**LONG, "stream": stream, "n": 2}).encode()
    with socket.create_connection((where.hostname, where.port), timeout=60) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
        raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        while len(answers) < 2 or not all(answer.tokens for answer in answers):
            pass
    for answer in answers:
        answer._stream.more(sys.maxsize).result(60)  # when it has ended
        assert answer.finish_reason == "cancelled"
        assert len(answer.tokens) < LONG["max_tokens"]
