"""OpenAI's API at a server: for clients without an edge, in the same batches as all others."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from runtime import Edge, EdgeConfig, Server, ServerConfig
from runtime.api.app import application
from runtime.api.bodies import MAX_QUICK_BYTES
from runtime.api.counting import GIVEN_UP, Counting
from runtime.api.keys import Keys
from runtime.api.of_server import LocalEdges
from runtime.api.serving import serving as serving_app
from runtime.config import ConfigError
from tests.certificates import self_signed
from tests.server.in_loop import Serving, run, serving
from tests.server.process import Process, server_process

PROMPT = "The sky is blue because"
TOKENS = {"alice": "a" * 40, "bob": "b" * 40}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 3}


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users.toml"
    path.write_text("".join(f'{name} = "{token}"\n' for name, token in TOKENS.items()))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def options(tiny_pair: tuple[Path, Path]) -> dict[str, Any]:
    model = {"model": str(tiny_pair[0]), "threads": 1, "kv_tokens": 8192}
    return {**model, "port": 0, "http": "127.0.0.1:0", "openai": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def server(options: dict[str, Any]) -> Iterator[Server]:
    with Server(ServerConfig(**options)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("drawn", [{"temperature": 0}, SAMPLED])
def test_texts_are_those_of_an_edge_with_drafts_and_of_plain_decoding(
    server: Server, client: openai.OpenAI, tiny_pair: tuple[Path, Path], drawn: dict[str, Any]
) -> None:
    """Whole and streamed, a completion and a chat."""
    model, messages = client.models.list().data[0].id, [{"role": "user", "content": PROMPT}]
    asked = {"model": model, "max_tokens": 40, **drawn}
    config = EdgeConfig(server=server.address, draft=str(tiny_pair[1]), threads=1)
    with Edge(config) as edge:
        texts = {
            raw: {
                edge.generate(prompt, raw=raw, max_tokens=40, max_budget=budget, **drawn).text
                for budget in (0, 16)
            }
            for raw, prompt in ((True, PROMPT), (False, messages))
        }
    completion = client.completions.create(prompt=PROMPT, **asked)
    assert texts[True] == {completion.choices[0].text}
    chunks = client.completions.create(prompt=PROMPT, stream=True, **asked)
    assert texts[True] == {"".join(chunk.choices[0].text for chunk in chunks)}
    chat = client.chat.completions.create(messages=messages, **asked)
    assert texts[False] == {chat.choices[0].message.content}
    assert chat.usage.completion_tokens == 40


def test_many_at_a_time_get_their_own(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.completions.create(
            model="", prompt=PROMPT, max_tokens=30, temperature=1, seed=seed
        )
        return answer.choices[0].text

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(ask, seed) for seed in range(12)))

    together = asyncio.run(all_at_once())
    assert together == [ask(seed) for seed in range(12)]
    assert len(set(together)) == 12


def test_keys_are_the_users_tokens(options: dict[str, Any], users: Path) -> None:
    """Whoever shows none, or a wrong one, learns nothing but that; the other user's is another."""
    with Server(ServerConfig(**options, users=str(users))) as server:
        for key in (None, "a" * 39, "x" * 40, "alice", "alice:" + "a" * 40, "ä" * 40):
            headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            for path in ("/models", "/chat/completions", "/completions"):
                method = "GET" if path == "/models" else "POST"
                answer = httpx.request(
                    method, server.openai_url + path, headers=headers, timeout=60
                )
                assert answer.status_code == 401, (key, path)
                assert answer.json()["error"]["type"] == "authentication_error"
        texts = []
        for key in TOKENS.values():
            with openai.OpenAI(base_url=server.openai_url, api_key=key) as client:
                asked = {"model": "", "prompt": PROMPT, "max_tokens": 9, "temperature": 0}
                texts.append(client.completions.create(**asked).choices[0].text)
        assert texts[0] == texts[1]


def test_two_users_with_one_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="users alice and carol have the same token"):
        Keys({"alice": b"a" * 32, "bob": b"b" * 32, "carol": b"a" * 32})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"openai": "0.0.0.0:8403"}, "can be reached by others.*--add-user"),
        ({"openai": "nowhere"}, "--openai is 'nowhere'; expected host:port"),
        ({"openai": "127.0.0.1:0", "redirect": "a:1"}, "give --openai to the replicas"),
        ({"chat_template": "x.jinja"}, "--chat-template is for the clients of --openai"),
    ],
)
def test_what_the_option_does_not_take(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ServerConfig(**options)


def test_what_fills_the_context_fits_the_pool_beside_a_tree(options: dict[str, Any]) -> None:
    """An answer without max_tokens fills the context: of 400 tokens of KV a tree may take 255."""
    with Server(ServerConfig(**(options | {"kv_tokens": 400}))) as server:
        (model,) = httpx.get(f"{server.openai_url}/models", timeout=60).json()["data"]
        context = model["max_model_len"]
        assert context == 400 - 255
        for length in (1, context - 1):
            asked = {"prompt": [65] * length, "max_tokens": 2**31 - 1, "temperature": 0}
            answer = httpx.post(f"{server.openai_url}/completions", json=asked, timeout=60).json()
            assert answer["usage"]["prompt_tokens"] == length
            assert 1 <= answer["usage"]["completion_tokens"] <= context - length
        too_long = {"prompt": [65] * context}
        refused = httpx.post(f"{server.openai_url}/completions", json=too_long, timeout=60)
        assert refused.status_code == 400


def test_a_pool_that_holds_a_tree_and_no_text_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--max-nodes 255; --kv-tokens 257 is the least"):
        Server(ServerConfig(**(options | {"kv_tokens": 240}))).__enter__()
    with Server(ServerConfig(**(options | {"kv_tokens": 257}))):
        pass


def test_a_chat_template_is_that_of_the_clients(options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    with pytest.raises(ConfigError, match="cannot read --chat-template"):
        Server(ServerConfig(**options, chat_template=str(file))).__enter__()
    file.write_text("{{ messages[0].content }}!")
    with Server(ServerConfig(**options, chat_template=str(file))) as server:
        url = server.openai_url.removesuffix("/v1")
        asked = [{"messages": [{"role": "user", "content": "Why"}]}, {"prompt": "Why!"}]
        answers = [httpx.post(f"{url}/tokenize", json=body, timeout=60) for body in asked]
        both = [answer.json()["tokens"] for answer in answers]
        assert both[0] == both[1]


def test_a_second_turn_finds_the_pages_of_the_first(tiny_pair: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        async with serving(tiny_pair[0]) as it, served(it) as client:
            messages, found = [{"role": "user", "content": PROMPT * 4}], []
            for _ in range(3):
                before = it.server.scheduler.hit_tokens
                asked = {"messages": messages, "max_tokens": 32, "temperature": 0}
                answer = (await client.post("/v1/chat/completions", json=asked)).json()
                hits = it.server.scheduler.hit_tokens - before
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == hits
                found.append((hits, answer["usage"]))
                messages += [answer["choices"][0]["message"], {"role": "user", "content": "?"}]
        assert found[0][0] == 0
        for (_, before), (hits, _) in itertools.pairwise(found):
            assert hits >= before["prompt_tokens"] - 16

    run(scenario)


@asynccontextmanager
async def served(it: Serving) -> AsyncIterator[httpx.AsyncClient]:
    """The API of a server in this event loop."""
    edges = LocalEdges(it.local.unready, None)
    edges.join(it.local)
    async with (
        serving_app("127.0.0.1:0", application(edges.backend_of)) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield client


def test_a_client_that_goes_away_frees_its_pages(tiny_pair: tuple[Path, Path]) -> None:
    """Streaming, waiting for the whole, or waiting in line."""

    async def scenario() -> None:
        async with serving(tiny_pair[0], max_requests=2) as it:
            edges, told = LocalEdges(it.local.unready, None), []
            edges.join(it.local)
            app, streams = application(edges.backend_of), Streams()
            app = Counting(app, app.routes, lambda *about: told.append(about), streams)
            asked = {"prompt": PROMPT * 4, "max_tokens": 700, "temperature": 0}
            async with serving_app("127.0.0.1:0", app) as url:
                for stream in (True, False):
                    clients = [httpx.AsyncClient(base_url=url, timeout=60) for _ in range(3)]
                    posts = [
                        asyncio.ensure_future(
                            client.post("/v1/completions", json={**asked, "stream": stream})
                        )
                        for client in clients
                    ]
                    await it.until(lambda: len(it.server.requests) == 3)
                    await it.until(lambda: it.server.totals.tokens > 20)
                    assert not stream or streams.open
                    for post in posts:
                        post.cancel()
                    steps = it.server.totals.steps
                    await it.until(lambda: not it.server.requests)
                    await it.until(lambda: it.free_pages == it.all_pages)
                    assert it.server.totals.steps - steps < 100  # of the 700 that they asked for
                    await asyncio.gather(*(client.aclose() for client in clients))
                await it.until(lambda: len(told) == 6)
            assert told == [("/v1/completions", 200)] * 3 + [("/v1/completions", GIVEN_UP)] * 3
            assert not streams.open
            it.server.scheduler.check()

    run(scenario)


class Streams:
    """A gauge."""

    open = 0

    def inc(self) -> None:
        self.open += 1

    def dec(self) -> None:
        self.open -= 1


def test_limits_of_edges_are_limits_of_clients(options: dict[str, Any]) -> None:
    config = ServerConfig(**options, max_user_requests=1)
    with (
        Server(config) as server,
        httpx.Client(base_url=server.openai_url + "/", timeout=60) as client,
    ):
        asked = {"prompt": PROMPT, "max_tokens": 800, "temperature": 0}
        with client.stream("POST", "completions", json={**asked, "stream": True}) as held:
            lines = held.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            answer = client.post("completions", json=asked)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        for length in (2000, 2 * MAX_QUICK_BYTES):  # the second is read in a thread
            long = client.post("completions", json={**asked, "prompt": "x" * length})
            assert long.status_code == 400
            assert "context" in long.json()["error"]["message"]


def test_it_is_encrypted_where_the_server_has_a_certificate(
    options: dict[str, Any], tmp_path: Path
) -> None:
    self_signed(tmp_path, "server")
    own = {"tls_certificate": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}
    with Server(ServerConfig(**options, **own)) as server:
        url = server.openai_url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
        assert httpx.get(f"{url}/models", verify=trusting, timeout=60).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models", timeout=60)
    # a gateway encrypts in its place; edges have TLS as before
    with Server(ServerConfig(**options, **own, openai_tls=False)) as server:
        assert server.openai_url.startswith("http://")
        asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{server.openai_url}/completions", json=asked, timeout=60)
        assert answer.status_code == 200
        trusting.check_hostname = False
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            trusting.wrap_socket(plain).close()


def url_of(process: Process) -> str:
    return process.process.next_line("clients without an edge").split()[0]


def test_a_loading_server_says_so(
    tiny_pair: tuple[Path, Path], tmp_path: Path, users: Path
) -> None:
    """The model's first file is a pipe, so loading lasts until the test writes it."""
    model = tmp_path / "slow-model"
    shutil.copytree(tiny_pair[0], model)
    config = model / "config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)
    options = ["--model", str(model), "--threads", "1", "--openai", "127.0.0.1:0"]
    with server_process(tmp_path / "log", *options, "--users", str(users)) as server:
        url, key = url_of(server), {"Authorization": f"Bearer {TOKENS['bob']}"}
        assert httpx.get(f"{url}/models", timeout=60).status_code == 401
        answer = httpx.get(f"{url}/models", headers=key, timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "slow-model is being loaded"
        assert int(answer.headers["retry-after"]) >= 1
        pages = url.removesuffix("/v1")  # for those who look after it, and have no key
        assert httpx.get(f"{pages}/health", timeout=60).json() == {"status": "ok"}
        told = httpx.get(f"{pages}/ready", timeout=60)
        assert (told.status_code, told.json()) == (503, answer.json())
        with config.open("wb") as pipe:  # opens when the server reads it
            (tmp_path / "config.json").write_bytes(content)
            (tmp_path / "config.json").replace(config)
            pipe.write(content)
        assert server.address
        (loaded,) = httpx.get(f"{url}/models", headers=key, timeout=60).json()["data"]
        assert loaded["id"] == "slow-model"
        assert httpx.get(f"{pages}/ready", timeout=60).json() == {"status": "ok"}


def test_a_drain_lets_streams_end(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """They have all of their text, new ones are refused, and the pages have counted them."""
    options = ["--model", str(tiny_pair[0]), "--threads", "1", "--openai", "127.0.0.1:0"]
    asked = {"prompt": PROMPT, "max_tokens": 600, "temperature": 0, "stream": True}
    with server_process(tmp_path / "log", *options) as server:
        url = url_of(server)
        assert server.address
        with httpx.stream("POST", f"{url}/completions", json=asked, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data:"))
            assert next(lines)
            server.process.send_signal(signal.SIGTERM)
            page = server.samples_once(lambda page: server.get("/ready")[0] == 503)
            assert page["http_streams_open",] == 1
            refused = httpx.post(f"{url}/completions", json=asked, timeout=60)
            assert refused.status_code == 503
            assert refused.json()["error"]["message"] == "the server is stopping"
            page = server.samples()
            assert page["http_requests_total", "/v1/completions", "503"] == 1
            *_, last = lines
        assert last == "data: [DONE]"
        assert server.process.wait(60) == 0
