"""What clients without an edge cost a server and its edges: streams over HTTP beside plain edges.

The stub server gives tokens to one client, to many, and to as many edges that draft nothing, over
sockets. Meanwhile some edges draft; what a verdict takes them tells what the others do to them.
Every text is known in advance and compared. At the end one client leaves in the middle of its
answer: how long until nobody holds a page, as /metrics tells.

    python -m bench.http_server [--clients 256] [--edges 8] [--step-ms 50] [--tokens 60] [--json]
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from bench.harness import option_parser, report
from bench.http import FIRST_TOKEN, Client, ask, ask_one, make_draft
from bench.stub_edges import HELLO, StubServer, decode, stub_server
from runtime.bench.figures import percentile
from runtime.edge.net.link import Link
from runtime.model.tokenizer import Tokenizer
from runtime.wire import messages as wire

GOAL_RATIO, GOAL_LEAVING_MS = 1.2, 100.0
# of edges that draft
PROMPT_TOKENS, TOKENS, NODES = 32, 1000, 8
Result = TypeVar("Result")


def main() -> None:
    """Print the report."""
    options = _options()
    with TemporaryDirectory() as folder:
        make_draft(Path(folder))
        meaning = Tokenizer.load(folder).hashes.below(HELLO.vocabulary_size)
        hello = replace(HELLO, vocabulary_hash=meaning)
        n = str(2 * options.clients + options.edges)
        limits = ["--max-requests", n, "--max-user-requests", n, "--max-batch", n]
        limits += ["--max-step-nodes", "4096", "--kv-tokens", str(2**20), "--model", folder]
        with stub_server(options.step_ms * 1e-3, *limits, "--openai", "127.0.0.1:0") as server:
            rounds = [
                asyncio.run(_round(server, hello, options.clients, options.edges, options.tokens))
                for _ in range(options.turns)
            ]
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    rows = [[name, f"{value:,.2f}"] for name, value in figures.items()]
    title = (
        f"{options.clients} clients beside {options.edges} edges that draft, "
        f"a stub model of {options.step_ms:g} ms a step"
    )
    report(title, ("figure (median of turns)", "value"), rows, figures, options.json)


async def _round(
    server: StubServer, hello: wire.Hello, clients: int, edges: int, tokens: int
) -> dict[str, float]:
    """The same tokens for edges and for clients: alone, for what they cost, and beside edges."""
    url = server.openai_url
    one = await ask(url, 1, tokens)
    _, plain_us = await _cost(server, _plain_edges(server, hello, clients, tokens))
    many, http_us = await _cost(server, ask(url, clients, tokens))
    beside_edges = await _waits(server, hello, edges, _plain_edges(server, hello, clients, tokens))
    beside_clients = await _waits(server, hello, edges, ask(url, clients, tokens))
    gaps = [[gap for client in these for gap in client.gaps_s] for these in (one, many)]
    p99_ms = [percentile(of_these, 0.99) * 1e3 for of_these in gaps]
    return {
        "gap, one client, p50, ms": percentile(gaps[0], 0.5) * 1e3,
        "gap, one client, p99, ms": p99_ms[0],
        "gap, all clients, p50, ms": percentile(gaps[1], 0.5) * 1e3,
        "gap, all clients, p99, ms": p99_ms[1],
        "ratio of the p99": p99_ms[1] / p99_ms[0],
        "goal, at most": GOAL_RATIO,
        "processor time of the server a token, plain edges, us": plain_us,
        "the same, clients, us": http_us,
        "a drafting edge waits, beside plain edges, p50, ms": percentile(beside_edges, 0.5) * 1e3,
        "the same, p99, ms": percentile(beside_edges, 0.99) * 1e3,
        "a drafting edge waits, beside clients, p50, ms": percentile(beside_clients, 0.5) * 1e3,
        "the same as before, p99, ms": percentile(beside_clients, 0.99) * 1e3,
        "a client leaves: its pages are free after, ms": await _leaving(server) * 1e3,
        "goal of it, ms": GOAL_LEAVING_MS,
    }


async def _plain_edges(server: StubServer, hello: wire.Hello, count: int, tokens: int) -> None:
    async with server.link(hello) as link:
        prompt, nodes = [FIRST_TOKEN], 0
        await asyncio.gather(*(_read(link, prompt, tokens, nodes) for _ in range(count)))


async def _read(link: Link, prompt: Sequence[int], tokens: int, nodes: int) -> list[float]:
    return [wait_s async for wait_s in decode(link, prompt, tokens, nodes)]


async def _cost(server: StubServer, work: Awaitable[Result]) -> tuple[Result, float]:
    """And what a token of it took the server, in us of processor time without the model's."""
    before = await server.samples()
    result = await work
    after = await server.samples()
    passed = {name: after[name] - before[name] for name in after.keys() & before.keys()}
    own_s = passed["process_cpu_seconds_total"] - passed["stub_forward_cpu_seconds"]
    return result, own_s / passed["generation_tokens_total"] * 1e6


async def _waits(
    server: StubServer, hello: wire.Hello, edges: int, work: Awaitable[object]
) -> list[float]:
    """What each verdict takes edges that draft, as long as the work lasts."""
    waits_s: list[float] = []

    async def draft(number: int) -> None:
        async with server.link(hello) as link:
            while True:
                async for wait_s in decode(link, [number] * PROMPT_TOKENS, TOKENS, NODES):
                    waits_s.append(wait_s)

    drafting = [asyncio.ensure_future(draft(number)) for number in range(edges)]
    await work
    for edge in drafting:
        edge.cancel()
    ended = await asyncio.gather(*drafting, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
    return waits_s


async def _leaving(server: StubServer) -> float:
    """Seconds from when a client hangs up until its request holds no pages."""
    client = Client()
    asking = asyncio.ensure_future(ask_one(server.openai_url, client, TOKENS))
    while not client.text:
        await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    left_s = time.perf_counter()
    while (await server.samples())["num_requests_running"]:
        pass
    return time.perf_counter() - left_s


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = option_parser("bench.http_server", __doc__)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--edges", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
