"""The endpoint of an edge as its user starts it, and while its server is not there."""

import asyncio
import json
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.api.answering import AS_IT_IS
from runtime.api.errors import STOPPING
from runtime.api.of_edge import EdgeBackend, beside, endpoint
from runtime.bench.link import Conditions, emulated_link
from runtime.config import ConfigError, EdgeConfig, ServerConfig
from runtime.edge.client import AsyncEdge, Edge
from runtime.serve import Server
from tests.processes import Child

ROLES = {"s": "system", "u": "user"}
BODY = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}


def command(config: EdgeConfig, *options: str) -> list[str]:
    program = [sys.executable, "-m", "runtime.edge", "--serve", "--threads", "1"]
    return [*program, "--server", config.server, "--draft", config.draft, *options]


def test_a_program_serves_until_it_is_told_to_stop(edge_config: EdgeConfig, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    options = ("--http", "127.0.0.1:0", "--http-key-file", str(key))
    with subprocess.Popen(
        command(edge_config, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            base = url.removesuffix("/v1")
            assert httpx.get(f"{base}/health", timeout=60).status_code == 200
            for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
                answer = httpx.get(f"{url}/models", headers=headers, timeout=60)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
            known = {"Authorization": f"Bearer {key.read_text()}"}
            while (ready := httpx.get(f"{base}/ready", timeout=60)).status_code == 503:
                assert ready.headers["retry-after"]
            answer = httpx.post(f"{url}/chat/completions", json=BODY, headers=known, timeout=60)
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


SIGNALLED_WITHIN_AN_ANSWER = """
import os, signal
from runtime.api.of_edge import EdgeBackend
from runtime.edge.__main__ import program
EdgeBackend.unready = lambda backend: os.kill(os.getpid(), signal.SIGTERM) or ""
program()
"""


def test_a_program_that_is_told_to_stop_within_an_answer_gives_it_and_stops(
    edge_config: EdgeConfig,
) -> None:
    """Where an exception would be taken for the app's."""
    options = command(edge_config, "--http", "127.0.0.1:0")[3:]
    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED_WITHIN_AN_ANSWER, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().strip().removesuffix("/v1")
            assert httpx.get(f"{base}/ready", timeout=60).json() == {"status": "ok"}
            assert process.wait(60) == 128 + signal.SIGTERM
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_program_that_is_told_to_stop_ends_its_streams_with_an_error(
    edge_config: EdgeConfig, tiny_pair: tuple[Path, Path], number: signal.Signals
) -> None:
    """The terminal has nothing of it, and each stream all that ends one."""
    server = Child("runtime.server", "--model", str(tiny_pair[0]), "--port", "0", "--http", "")
    address = server.next_line("--server ").split("--server ")[1].split()[0]
    asked = {"prompt": "Why?", "max_tokens": 900, "stream": True}
    with subprocess.Popen(
        command(replace(edge_config, server=address), "--http", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            base = url.removesuffix("/v1")
            while httpx.get(f"{base}/ready", timeout=60).status_code == 503:
                pass
            with (
                httpx.stream("GET", f"{base}/events", timeout=60) as page,
                httpx.stream("POST", f"{url}/completions", json=asked, timeout=60) as answer,
            ):
                events, lines = page.iter_lines(), (one for one in answer.iter_lines() if one)
                assert next(events) == "event: now"
                while not next(lines).startswith("data:"):
                    pass
                server.send_signal(signal.SIGSTOP)  # so that the answer does not end by itself
                process.send_signal(number)
                *_, error, last = lines
                assert list(events)
            assert json.loads(error.removeprefix("data: "))["error"]["message"] == STOPPING
            assert last == "data: [DONE]"
            assert process.wait(60) == 128 + number
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()
            server.kill()


@pytest.mark.parametrize("chosen", ["system", "chat_template", "enable_thinking"])
def test_what_an_edge_is_told_of_conversations(
    edge_config: EdgeConfig, tmp_path: Path, chosen: str
) -> None:
    """It holds for conversations, unless they bring their own; a completion is as it is."""
    file = tmp_path / "own.jinja"
    file.write_text(
        "{{ enable_thinking }}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
    )
    told = {"system": "Be.", "chat_template": str(file), "enable_thinking": False}
    template = {"chat_template": str(file)}
    config = replace(edge_config, http="127.0.0.1:0", **{**template, chosen: told[chosen]})

    async def ask() -> None:
        async with (
            AsyncEdge(config) as edge,
            endpoint(edge) as (url, _),
            httpx.AsyncClient(base_url=url, timeout=60) as client,
        ):
            body = {"max_tokens": 5, "temperature": 0}

            async def answer(path: str, **more: Any) -> dict[str, Any]:
                return (await client.post(path, json={**body, **more})).json()

            whole = await answer("/v1/completions", prompt="Once")
            assert whole["usage"]["prompt_tokens"] == len(edge.encode("Once", **AS_IT_IS))
            for roles in ("u", "su"):
                said = [{"role": ROLES[role], "content": "Why"} for role in roles]
                chat = await answer("/v1/chat/completions", messages=said)
                first = "<s>Be." if chosen == "system" and roles == "u" else ""
                thinks = "False" if chosen == "enable_thinking" else ""
                text = thinks + first + "".join(f"<{role}>Why" for role in roles)
                spelled = await answer("/v1/completions", prompt=text)
                assert chat["usage"]["prompt_tokens"] == spelled["usage"]["prompt_tokens"]
                words = chat["choices"][0]["message"]["content"]
                assert words == spelled["choices"][0]["text"]

    asyncio.run(ask())


def test_a_busy_port_is_one_line(edge_config: EdgeConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            command(edge_config, "--http", address), capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"cannot listen on {address}" in done.stderr


def test_an_address_of_others_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="--http-key-file"):
        EdgeConfig(serve=True, http="0.0.0.0:8401")
    with pytest.raises(ConfigError, match="--serve needs an address"):
        EdgeConfig(serve=True, http="")
    with pytest.raises(ConfigError, match="does not go with"):
        EdgeConfig(serve=True, prompt="Why?")
    EdgeConfig(http="0.0.0.0:8401")  # of what is not served
    EdgeConfig(chat=True, http="")


def test_a_server_that_is_away_is_told_and_found_again(edge_config: EdgeConfig) -> None:
    async def scenario() -> None:
        own = socket.socket()  # at which nobody listens yet, and nobody else will
        own.bind(("127.0.0.1", 0))
        edge = AsyncEdge(replace(edge_config, server=f"127.0.0.1:{own.getsockname()[1]}"))
        async with (
            endpoint(edge) as (url, backend),
            httpx.AsyncClient(base_url=url, timeout=60) as client,
        ):
            answer = await client.post("/v1/chat/completions", json=BODY)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            looking = asyncio.ensure_future(backend.stay_connected())
            while "nothing listens there" not in (await client.get("/ready")).text:
                pass
            relay = await asyncio.start_server(relayed_to(edge_config.server), sock=own)
            while (await client.get("/ready")).status_code != 200:
                pass
            assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
            looking.cancel()
            relay.close()
        await edge.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))


def relayed_to(
    address: str,
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    host, port = address.split(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)

    return relay


def test_a_chat_s_edge_is_asked_by_others_too(edge_config: EdgeConfig) -> None:
    told: list[str] = []
    with Edge(replace(edge_config, chat=True)) as edge:
        own = edge.generate("Why?", max_tokens=3, temperature=0).text
        with beside(edge, told.append):
            body = {**BODY, "temperature": 0}
            answer = httpx.post(f"{told[0]}/chat/completions", json=body, timeout=60).json()
            assert answer["choices"][0]["message"]["content"] == own
        assert edge.generate("Why?", max_tokens=3, temperature=0).text == own


def test_what_is_served_ends_with_its_program_however_that_ends(
    edge_config: EdgeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said of it, and the port is free."""
    told: list[str] = []
    with Edge(replace(edge_config, chat=True)) as edge:
        with pytest.raises(BrokenPipeError), beside(edge, told.append):
            raise BrokenPipeError
        with pytest.raises(httpx.ConnectError):
            httpx.get(told[0])
    assert not caplog.records


def test_a_chat_goes_on_where_its_port_is_taken(edge_config: EdgeConfig) -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        edge = Edge(replace(edge_config, chat=True, http=address))
        with edge, beside(edge, told.append):
            assert edge.generate("Why?", max_tokens=3).text
    assert f"cannot listen on {address}" in told[0]


def test_too_many_at_once_is_429(edge: EdgeBackend, url: str) -> None:
    """As many as the server lets an edge have, and one more; those that run go on."""
    most = edge.edge._worker.uplink.welcome.max_requests
    body = {**BODY, "max_tokens": 900, "n": most + 1}
    for stream in (False, True):
        asked = {**body, "stream": stream}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60)
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["type"] == "rate_limit_error"
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=60).status_code == 200


def test_a_refusal_from_far_away_is_a_status_too(
    edge_config: EdgeConfig, tiny_pair: tuple[Path, Path]
) -> None:
    """Of a stream as well: clients try again at a status, and not at an event."""
    full = {"max_requests": 1, "max_waiting": 0}
    config = ServerConfig(model=str(tiny_pair[0]), port=0, http="", threads=1, **full)
    told: list[str] = []
    with (
        Server(config) as server,
        Edge(replace(edge_config, server=server.address)) as near,
        emulated_link(server.address, Conditions(rtt_s=0.2)) as address,
        Edge(replace(edge_config, server=address, chat=True)) as far,
        beside(far, told.append),
    ):
        held = near.generate("Why?", max_tokens=900)
        pieces = iter(held)
        next(pieces)
        body = {**BODY, "stream": True}
        refused = httpx.post(f"{told[0]}/chat/completions", json=body, timeout=60)
        assert held.finish_reason is None, "it was refused while the other ran"
        held.cancel()
        assert (refused.status_code, refused.headers.get("retry-after")) == (429, "1")
