"""What HTTP costs: streaming clients at an edge, whose server has a model without arithmetic.

Every client's text is known in advance and compared. The gaps between chunks are those of this
process; beside one client's, that of many tells what they cost each other. The processor time of
an edge that answers over HTTP, less that of one whose Python reads the same answers, over the
chunks, is what HTTP costs.

    python -m bench.http [--clients 64] [--step-ms 50] [--tokens 100] [--turns 3] [--json]
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from bench.harness import option_parser, report
from bench.stub_edges import StubServer, stub_server, text_after
from bench.stub_server import VOCABULARY
from runtime.bench.figures import percentile
from runtime.config import EdgeConfig, prepare_threads

GOAL_RATIO, GOAL_MS, GOAL_FIRST_MS, GOAL_FREED_MS = 1.2, 0.3, 20.0, 100.0
REQUESTS = 20  # for what a single one takes
FIRST_TOKEN = 1


def main() -> None:
    """Print the report."""
    options = _options()
    with TemporaryDirectory() as folder:
        make_draft(Path(folder))
        n = str(2 * options.clients)
        limits = ["--max-requests", n, "--max-user-requests", n, "--max-batch", n]
        limits += ["--max-step-nodes", "2048", "--kv-tokens", str(2**20), "--model", folder]
        with stub_server(options.step_ms * 1e-3, *limits) as server:
            host, port = server.address
            config = EdgeConfig(
                server=f"{host}:{port}", draft=folder, http="127.0.0.1:0", threads=1, max_budget=0
            )
            turns = [
                _turn(server, config, options.clients, options.tokens) for _ in range(options.turns)
            ]
    figures = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    rows = [[name, f"{value:,.3f}"] for name, value in figures.items()]
    title = f"{options.clients} clients, a stub model of {options.step_ms:g} ms a step"
    report(title, ("figure (median of turns)", "value"), rows, figures, options.json)


def _turn(server: StubServer, config: EdgeConfig, clients: int, tokens: int) -> dict[str, float]:
    with _edge(_answer_http, config) as (edge, url):
        asyncio.run(ask(url, 1, 2))  # what is made once
        firsts_s = [asyncio.run(ask(url, 1, 2))[0].first_s for _ in range(REQUESTS)]
        freed_s = [asyncio.run(_leave(server, url)) for _ in range(REQUESTS)]
        alone = asyncio.run(ask(url, 1, tokens))
        cpu_s = _cpu_s(edge)
        together = asyncio.run(ask(url, clients, tokens))
        http_s = _cpu_s(edge) - cpu_s
    with _edge(_answer_python, config) as (edge, _):
        edge.send((clients, tokens))
        python_s = edge.recv()
    chunks = sum(len(client.gaps_s) + 1 for client in together)
    gaps = [[gap for client in these for gap in client.gaps_s] for these in (alone, together)]
    p99_ms = [percentile(of_these, 0.99) * 1e3 for of_these in gaps]
    return {
        "gap, one client, p50, ms": percentile(gaps[0], 0.5) * 1e3,
        "gap, one client, p99, ms": p99_ms[0],
        "gap, all clients, p50, ms": percentile(gaps[1], 0.5) * 1e3,
        "gap, all clients, p99, ms": p99_ms[1],
        "ratio of the p99": p99_ms[1] / p99_ms[0],
        "goal, at most": GOAL_RATIO,
        "first byte, one client, p50, ms": percentile(firsts_s, 0.5) * 1e3,
        "first byte, one client, p90, ms": percentile(firsts_s, 0.9) * 1e3,
        "first byte, all clients, p99, ms": percentile([c.first_s for c in together], 0.99) * 1e3,
        "goal of one, ms": GOAL_FIRST_MS,
        "a client left, and the server is free of it, p50, ms": percentile(freed_s, 0.5) * 1e3,
        "the same, p90, ms": percentile(freed_s, 0.9) * 1e3,
        "goal of it: a step, and ms": GOAL_FREED_MS,
        "edge's processor time a chunk, HTTP, ms": http_s / chunks * 1e3,
        "the same, Python call, ms": python_s / chunks * 1e3,
        "HTTP costs, ms a chunk": (http_s - python_s) / chunks * 1e3,
        "goal of that, ms": GOAL_MS,
    }


@dataclass
class Client:
    """One stream as it is read: when its bytes came, and its text."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    async def ask(self, host: str, port: int, body: bytes) -> None:
        """A whole answer over a connection of its own."""
        reader, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}\r\n".encode() + body)
        try:
            await self._read(reader, time.perf_counter())
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, started_s: float) -> None:
        await reader.readuntil(b"\r\n\r\n")
        last_s = 0.0
        while (line := await reader.readline()) != b"data: [DONE]\n":
            now_s = time.perf_counter()
            assert line, "the stream ended too early"
            self.first_s = self.first_s or now_s - started_s
            if line.startswith(b"data: ") and (text := _text_of(line)):
                if last_s:
                    self.gaps_s.append(now_s - last_s)
                last_s = now_s
                self.text.append(text)


def _text_of(line: bytes) -> str:
    choices = json.loads(line[6:])["choices"]
    return str(choices[0]["text"]) if choices else ""


async def ask(url: str, clients: int, tokens: int) -> list[Client]:
    """Many at once, each with the text that it must have."""
    all_of_them = [Client() for _ in range(clients)]
    await asyncio.gather(*(ask_one(url, one, tokens) for one in all_of_them))
    expected = "".join(f" w{token}" for token in text_after(FIRST_TOKEN, tokens))
    for client in all_of_them:
        assert "".join(client.text).strip() == expected.strip(), "another text"
    return all_of_them


async def ask_one(url: str, client: Client, tokens: int) -> None:
    """A whole answer, of which the client keeps what has come."""
    where = urlsplit(url)
    assert where.hostname is not None, "a URL without a host"
    assert where.port is not None, "a URL without a port"
    body = {"prompt": [FIRST_TOKEN], "max_tokens": tokens, "temperature": 0, "stream": True}
    await client.ask(where.hostname, where.port, json.dumps(body).encode())


async def _leave(server: StubServer, url: str) -> float:
    """Seconds from a client's leaving until the server has no request any more."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    body = json.dumps({"prompt": [FIRST_TOKEN], "max_tokens": 1000, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    await reader.readuntil(b"data: ")
    left_s = time.perf_counter()
    writer.close()
    while (await server.samples())["num_requests_running"]:
        pass
    return time.perf_counter() - left_s


@contextmanager
def _edge(target: object, config: EdgeConfig) -> Iterator[tuple[Connection, str]]:
    """An edge in a process of its own, which says where it is, and what we need to know."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(config, theirs))
    process.start()
    theirs.close()  # so that one that fails is not waited for
    try:
        yield ours, ours.recv()
        ours.send(None)
        process.join(60)
    finally:
        process.kill()


def _cpu_s(edge: Connection) -> float:
    edge.send("cpu")
    return float(edge.recv())


def _answer_http(config: EdgeConfig, parent: Connection) -> None:
    """An edge's endpoint; tells its URL, and then its processor time whenever it is asked."""
    _prepare(config)
    from runtime.api.of_edge import endpoint
    from runtime.edge.client import AsyncEdge

    async def serve() -> None:
        async with AsyncEdge(config) as edge, endpoint(edge) as (url, _):
            parent.send(url)
            while await asyncio.to_thread(parent.recv) is not None:
                parent.send(time.process_time())

    asyncio.run(serve())


def _answer_python(config: EdgeConfig, parent: Connection) -> None:
    """Reads answers itself; tells the processor time of as many as it is told."""
    _prepare(config)
    from runtime.edge.client import AsyncEdge

    async def read(edge: AsyncEdge, tokens: int) -> None:
        answer = edge.generate([FIRST_TOKEN], raw=True, max_tokens=tokens)
        assert len([piece async for piece in answer]) == tokens, "another text"

    async def serve() -> None:
        async with AsyncEdge(config) as edge:
            parent.send("")
            await read(edge, 1)
            clients, tokens = await asyncio.to_thread(parent.recv)
            before_s = time.process_time()
            await asyncio.gather(*(read(edge, tokens) for _ in range(clients)))
            parent.send(time.process_time() - before_s)
            await asyncio.to_thread(parent.recv)

    asyncio.run(serve())


def _prepare(config: EdgeConfig) -> None:
    import os

    prepare_threads(config, os.environ)


def make_draft(folder: Path) -> None:
    """A model that is never run, with a word for each of the stub's ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, eos_token_id=None, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = option_parser("bench.http", __doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
