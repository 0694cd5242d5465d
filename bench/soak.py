"""A server under churn: does anything stay that nobody needs?

Edges come and go. Their prompts share beginnings; some requests end, some are cancelled, some lose
their connection, some stop in the middle of the prompt. The server is the real one around a stub
model. What is left at the end is counted; the slope of its memory is a least-squares line through
the samples after the first third, in which caches fill.

    python -m bench.soak [--requests 10000 | --quick] [--edges 24] [--json]
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from bench.harness import option_parser, report
from bench.stub_edges import HELLO, StubServer, decode, stub_server
from bench.stub_server import VOCABULARY
from runtime.edge.net.asking import opening
from runtime.edge.net.link import Link
from runtime.sampling import Sampling
from runtime.wire import messages as wire

QUICK_REQUESTS = 500
STEP_S = 0.001
SAMPLE_S = 0.5
LEFT_S = 10.0  # at most, until what the last connections held is free
GOAL_MB_PER_MIN = 0.1
MOST_REQUESTS_A_LINK, MOST_TOKENS, NODES = 12, 24, 8
FATES = {"ends": 5, "is cancelled": 2, "stops in its prompt": 1, "loses its link": 1}  # weights
BEGINNINGS, BEGINNING_TOKENS, TAIL_TOKENS = 16, 192, 64


class RoughLink(Link):
    """A link that can also behave badly."""

    def half_prompt(self, prompt: list[int]) -> None:
        """Open a request and send less of its prompt than was said."""
        self._last_number += 1
        self._peer.send(opening(Sampling(1), self._last_number, len(prompt), 0))
        self._peer.send(wire.Prompt(self._last_number, tuple(prompt[:-1])))

    async def abort(self) -> None:
        """Cut the connection, whatever is still to be written."""
        self._peer.abort()
        await self.close()


@dataclass
class Churn:
    """All edges of the soak: `left` requests are still to be begun."""

    server: StubServer
    left: int
    dice: random.Random
    fates: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._beginnings = [self._tokens(BEGINNING_TOKENS) for _ in range(BEGINNINGS)]

    async def edge(self) -> None:
        """One connection after the other, with some requests each."""
        while self.left > 0:
            link = await RoughLink.open(*self.server.address, HELLO)
            assert isinstance(link, RoughLink)
            for _ in range(self.dice.randint(1, MOST_REQUESTS_A_LINK)):
                if self.left <= 0 or not link.alive:
                    break
                self.left -= 1
                await self._request(link)
            await link.close()

    async def _request(self, link: RoughLink) -> None:
        fate = self.dice.choices(list(FATES), list(FATES.values()))[0]
        self.fates[fate] += 1
        if fate == "stops in its prompt":
            link.half_prompt(self._prompt())
            return
        tokens, rounds = self.dice.randint(1, MOST_TOKENS), self.dice.randint(0, 4)
        answer = decode(link, self._prompt(), tokens, NODES)
        async for _ in answer:
            rounds -= 1
            if rounds < 0 and fate != "ends":
                break
        if fate == "loses its link":
            await link.abort()
        await answer.aclose()

    def _prompt(self) -> list[int]:
        """A beginning that others have too, or a part of it, and a tail of its own."""
        shared = self.dice.choice(self._beginnings)[: self.dice.randint(1, BEGINNING_TOKENS)]
        return [*shared, *self._tokens(self.dice.randint(1, TAIL_TOKENS))]

    def _tokens(self, count: int) -> list[int]:
        return [self.dice.randrange(VOCABULARY) for _ in range(count)]


def main() -> None:
    """Print the report."""
    options = _options()
    requests = QUICK_REQUESTS if options.quick else options.requests
    with stub_server(STEP_S) as server:
        churn = Churn(server, requests, random.Random(options.seed))
        figures = asyncio.run(_soak(churn, options.edges))
    rows = [[name, f"{value:,.2f}"] for name, value in figures.items()]
    title = f"{requests:,} requests on {options.edges} connections at a time, stub model"
    report(title, ("figure", "value"), rows, figures, options.json)


async def _soak(churn: Churn, edges: int) -> dict[str, float]:
    server = churn.server
    before, start_s = await server.samples(), time.monotonic()
    everyone = asyncio.gather(*(churn.edge() for _ in range(edges)))
    memory = []  # (minutes, MB)
    while not everyone.done():
        await asyncio.wait([everyone], timeout=SAMPLE_S)
        rss_mb = (await server.samples())["process_resident_memory_bytes"] * 1e-6
        memory.append(((time.monotonic() - start_s) / 60, rss_mb))
    await everyone
    after = await _settled(server)
    warm = np.array(memory[len(memory) // 3 :])  # [samples, 2]
    assert len(warm) > 1, "too few samples for a slope; take more requests"
    return {
        **{f"requests: one that {fate}": count for fate, count in churn.fates.items()},
        "minutes": memory[-1][0],
        "steps": after["verify_batch_size_count"],
        "RSS slope, MB/min": float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0]),
        "goal, MB/min": GOAL_MB_PER_MIN,
        "RSS after a third, MB": float(warm[0, 1]),
        "RSS at the end, MB": float(warm[-1, 1]),
        "descriptors more than before": after["process_open_fds"] - before["process_open_fds"],
        "requests left": after["num_requests_running"] + after["num_requests_waiting"],
        "edges left": after["edges_connected"],
        "share of pages held": after["kv_cache_usage_perc"],
        "credits out": after["credits_outstanding"],
        "prefix cache hit rate": after["prefix_cache_hits_total"]
        / after["prefix_cache_queries_total"],
        "evicted pages": after["prefix_cache_evictions_total"],
        "preemptions": after["num_preemptions_total"],
    }


async def _settled(server: StubServer) -> dict[str, float]:
    """Once the server has noticed that all have gone, or after a while."""
    deadline_s = time.monotonic() + LEFT_S
    while True:
        now = await server.samples()
        gone = not (now["edges_connected"] or now["num_requests_running"])
        if gone or time.monotonic() > deadline_s:
            return now
        await asyncio.sleep(0.1)


def _options() -> argparse.Namespace:
    parser = option_parser("bench.soak", __doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests")
    parser.add_argument("--edges", type=int, default=24, help="connections at a time")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
