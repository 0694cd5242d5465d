"""Ten times as many requests as the server can take: how fast is the refusal, who feels it?

Requests come at fixed times, whether the server keeps up or not. The model is a stub of fixed step
time, so capacity is known: half of it is the unloaded case of the same run. Latencies are those of
whole rounds as the edges see them, the first verdict, which may have waited in the queue, apart.

    python -m bench.overload [--seconds 15] [--times 10] [--json]
"""

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle

from bench.harness import option_parser, report
from bench.stub_edges import StubServer, decode, stub_server
from runtime.bench.figures import percentile
from runtime.edge.net.link import Link, ServerError
from runtime.wire.messages import ErrorCode

STEP_S = 0.05
RUNNING, WAITING = 8, 8  # requests that the server takes
TOKENS = 20  # of an answer, one a round: the edges draft nothing
CAPACITY_PER_S = RUNNING / (TOKENS * STEP_S)
LINKS = 40
UNLOADED = 0.5  # of the capacity
GOAL_BUSY_MS, GOAL_RATIO = 50.0, 1.5


@dataclass
class Seen:
    """What the edges saw, in seconds."""

    first_s: list[float] = field(default_factory=list)
    round_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)

    async def ask(self, link: Link, number: int) -> None:
        """One request to its end or its refusal."""
        start_s, rounds = time.monotonic(), []
        try:
            async for round_s in decode(link, [number % 256] * 32, TOKENS, 0):
                rounds.append(round_s)
        except ServerError as error:
            if error.code is not ErrorCode.BUSY:
                raise
            self.busy_s.append(time.monotonic() - start_s)
            return
        self.first_s.append(rounds[0])
        self.round_s += rounds[1:]


def main() -> None:
    """Print the report."""
    options = _options()
    limits = ["--max-requests", str(RUNNING), "--max-waiting", str(WAITING)]
    with stub_server(STEP_S, *limits, "--max-user-requests", "60000") as server:
        unloaded, loaded = asyncio.run(_both(server, options.seconds, options.times))
    figures = _figures(unloaded, loaded)
    rows = [[name, f"{value:,.2f}"] for name, value in figures.items()]
    title = (
        f"{UNLOADED:g} and {options.times:g} times a capacity of {CAPACITY_PER_S:g} requests/s, "
        f"stub model of {STEP_S * 1e3:g} ms, {RUNNING} running and {WAITING} waiting"
    )
    report(title, ("figure", "value"), rows, figures, options.json)


async def _both(server: StubServer, seconds: float, times: float) -> tuple[Seen, Seen]:
    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(server.link()) for _ in range(LINKS)]
        unloaded = await _offer(links, seconds, UNLOADED * CAPACITY_PER_S)
        return unloaded, await _offer(links, seconds, times * CAPACITY_PER_S)


async def _offer(links: list[Link], seconds: float, requests_per_s: float) -> Seen:
    """Requests at fixed times, on all links in turn; until the last has ended."""
    seen, start_s, asking = Seen(), time.monotonic(), []
    for number, link in zip(range(int(seconds * requests_per_s)), cycle(links), strict=False):
        await asyncio.sleep(start_s + number / requests_per_s - time.monotonic())
        asking.append(asyncio.ensure_future(seen.ask(link, number)))
    await asyncio.gather(*asking)
    return seen


def _figures(unloaded: Seen, loaded: Seen) -> dict[str, float]:
    ratio = percentile(loaded.round_s, 0.99) / percentile(unloaded.round_s, 0.99)
    return {
        "unloaded: answered": len(unloaded.first_s),
        "unloaded: refused": len(unloaded.busy_s),
        "unloaded: round p50, ms": percentile(unloaded.round_s, 0.5) * 1e3,
        "unloaded: round p99, ms": percentile(unloaded.round_s, 0.99) * 1e3,
        "unloaded: first verdict p99, ms": percentile(unloaded.first_s, 0.99) * 1e3,
        "overload: answered": len(loaded.first_s),
        "overload: refused": len(loaded.busy_s),
        "overload: round p50, ms": percentile(loaded.round_s, 0.5) * 1e3,
        "overload: round p99, ms": percentile(loaded.round_s, 0.99) * 1e3,
        "overload: first verdict p99, ms": percentile(loaded.first_s, 0.99) * 1e3,
        "round p99, overload over unloaded": ratio,
        "goal": GOAL_RATIO,
        "refusal p50, ms": percentile(loaded.busy_s, 0.5) * 1e3,
        "refusal p99, ms": percentile(loaded.busy_s, 0.99) * 1e3,
        "longest refusal, ms": max(loaded.busy_s) * 1e3,
        "goal, ms": GOAL_BUSY_MS,
    }


def _options() -> argparse.Namespace:
    parser = option_parser("bench.overload", __doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each of the two loads")
    parser.add_argument("--times", type=float, default=10.0, help="the capacity, in the overload")
    return parser.parse_args()


if __name__ == "__main__":
    main()
