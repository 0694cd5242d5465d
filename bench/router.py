"""What the front does for replicas: spread, prefix caches that are found again, a replica's death.

Stub replicas and stub edges; the front, the wire and the sockets are real. Each user has a text
that all its prompts begin with. All edges connect, ask once and stay; then all hang up and come
back, as after a night. The same through one replica says what a prefix cache can find at all.
Last, some are being answered while a replica is killed. Gates no wall-clock time.

    python -m bench.router [--edges 5000] [--users 500] [--replicas 4] [--answering 400] [--json]
"""

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import option_parser, report
from bench.stub_edges import HELLO, StubServer, stub_server, text_after
from runtime.config import parse_address
from runtime.edge.net.link import Credentials, Link, ServerError
from runtime.edge.net.uplink import Retries
from runtime.sampling import Sampling
from runtime.server.users import add_user, load_users

SHARED_TOKENS, OWN_TOKENS, SHORT_TOKENS, LONG_TOKENS = 64, 16, 2, 600
STEP_S, RESUME_S = 0.02, 30.0
CONNECTING = 32  # at a time: the servers let 64 strangers stand at their doors


@dataclass
class Site:
    """What edges connect to, what is behind it, and who they are."""

    front: StubServer
    replicas: list[StubServer]
    tokens: Mapping[str, bytes]

    async def of_each(self, name: str) -> list[float]:
        """A sample of each replica."""
        return [(await replica.samples())[name] for replica in self.replicas]

    async def link(self, user: str) -> Link:
        """A connection to the replica that the front names. Raises ServerError."""
        hello = replace(HELLO, user=user)
        return await Link.open(*self.front.address, hello, Credentials(self.tokens[user]))


def main() -> None:
    """Print the report."""
    options = _options()
    with TemporaryDirectory() as folder:
        users = Path(folder) / "users.toml"
        names = [f"user-{index}" for index in range(options.users)]
        for name in names:
            add_user(users, name)
        edges = [names[index % len(names)] for index in range(options.edges)]
        with _site(users, 1, len(edges)) as alone:
            single = asyncio.run(_day(alone, edges))
        with _site(users, options.replicas, len(edges)) as site:
            figures = asyncio.run(_day(site, edges))
            figures |= asyncio.run(_death(site, edges[: options.answering]))
    figures["of a single server's prefix hits"] = (
        figures["prompt tokens found"] / single["prompt tokens found"]
    )
    rows = [[name, f"{value:,.4g}"] for name, value in figures.items()]
    title = f"{options.edges} stub edges, {options.replicas} stub replicas behind a front"
    report(title, ("figure", "value"), rows, figures, options.json)


@contextmanager
def _site(users: Path, n_replicas: int, edges: int) -> Iterator[Site]:
    """Replicas and a front before them."""
    n = str(edges)
    limits = ["--max-connections", n, "--max-user-connections", n, "--users", str(users)]
    limits += ["--kv-tokens", str(2**20), "--max-strangers", "1024"]
    limits += ["--max-requests", n]  # none waits for another: the front spreads edges, not requests
    with ExitStack() as stack:
        replicas = [stack.enter_context(stub_server(STEP_S, *limits)) for _ in range(n_replicas)]
        places = [
            f"{one.address[0]}:{one.address[1]}={one.url.partition('://')[2]}" for one in replicas
        ]
        front = stack.enter_context(_front(",".join(places), users))
        yield Site(front, replicas, load_users(users))


@contextmanager
def _front(replicas: str, users: Path) -> Iterator[StubServer]:
    command = [sys.executable, "-m", "runtime.server", "--redirect", replicas, "--port", "0"]
    command += ["--users", str(users), "--http", "127.0.0.1:0", "--log-level", "warning"]
    command += ["--max-strangers", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "--server " not in said and (line := process.stdout.readline()):
                said += line
            url, address = re.search(r"http://[\w.:]+", said), re.search(r"--server (\S+)", said)
            assert url is not None, f"the front did not start: {said}"
            assert address is not None, f"the front did not start: {said}"
            yield StubServer(url[0], parse_address(address[1]), process)
        finally:
            process.terminate()


async def _day(site: Site, edges: Sequence[str]) -> dict[str, float]:
    """All come, ask and go, twice."""
    front = await site.front.samples()
    began_s = time.monotonic()
    skews = []
    for _ in range(2):
        links = await _together(site.link(user) for user in edges)
        connected = await site.of_each("edges_connected")
        skews.append(max(connected) / statistics.fmean(connected))
        asks = (
            _ask(link, _prompt(user, index), SHORT_TOKENS)
            for index, (user, link) in enumerate(zip(edges, links, strict=True))
        )
        await _together(asks)
        await _together(link.close() for link in links)
        while sum(await site.of_each("edges_connected")):
            pass
    used_s = (await site.front.samples())["process_cpu_seconds_total"]
    used_s -= front["process_cpu_seconds_total"]
    sought, found = [
        sum(await site.of_each(f"prefix_cache_{what}_total")) for what in ("queries", "hits")
    ]
    return {
        "largest share of the edges, of the mean": max(skews),
        "prompt tokens found": found / sought,
        "us of the front per connection": used_s / (2 * len(edges)) * 1e6,
        "us of the front per connection-second": (
            used_s / len(edges) / (time.monotonic() - began_s) * 1e6
        ),
    }


async def _death(site: Site, edges: Sequence[str]) -> dict[str, float]:
    """Some are being answered, a replica is killed, and all texts come to their ends."""
    killed_s: list[float] = []
    told = [list[float]() for _ in edges]  # when each text went on
    answers = [
        asyncio.ensure_future(_answer(site, user, _prompt(user, index), told[index]))
        for index, user in enumerate(edges)
    ]
    while not all(told):
        await asyncio.sleep(0.01)
    counts = await site.of_each("num_requests_running")
    killed_s.append(time.monotonic())
    victim = max(range(len(counts)), key=counts.__getitem__)
    site.replicas[victim].process.kill()
    resumed = await asyncio.gather(*answers)  # raises where a text is another one
    waits = sorted(again_s - killed_s[0] for again_s in resumed if again_s is not None)
    assert waits, "nobody was being answered by the replica that was killed"
    return {
        "answers at the replica that was killed": len(waits),
        "s until a text goes on, median": statistics.median(waits),
        "s until a text goes on, p99": waits[int(0.99 * len(waits))],
    }


async def _answer(site: Site, user: str, prompt: list[int], told: list[float]) -> float | None:
    """A whole answer, over as many links as it takes; when it went on after a break, if one came.

    Raises ServerError, and AssertionError for another text.
    """
    text, retries, resumed_s = list(prompt), Retries(RESUME_S), None
    while (missing := len(prompt) + LONG_TOKENS - len(text)) > 0:
        try:
            link = await site.link(user)
            request = link.request(text, Sampling(missing), 0)
            while not request.finished:
                text.append((await request.verdict()).bonus)
                if retries.begun:
                    resumed_s = time.monotonic()
                    retries.succeeded()
                told.append(time.monotonic())
            await link.close()
        except ServerError as error:
            await retries.wait(error)
    assert text[len(prompt) :] == text_after(prompt[-1], LONG_TOKENS), "another text"
    return resumed_s


async def _ask(link: Link, prompt: list[int], max_tokens: int) -> None:
    request = link.request(prompt, Sampling(max_tokens), 0)
    while not request.finished:
        await request.verdict()


def _prompt(user: str, index: int) -> list[int]:
    """The user's text, and some of its own."""
    number = int(user.rpartition("-")[2])
    shared = [(number >> 8 * (place % 2)) % 256 for place in range(SHARED_TOKENS)]
    return shared + [(index * 31 + place) % 256 for place in range(OWN_TOKENS)]


async def _together(calls: Iterator[Awaitable[object]]) -> list:
    """The results of all, in order; only so many run at a time."""
    door = asyncio.Semaphore(CONNECTING)

    async def one(call: Awaitable[object]) -> object:
        async with door:
            return await call

    return await asyncio.gather(*map(one, calls))


def _options() -> argparse.Namespace:
    parser = option_parser("bench.router", __doc__)
    parser.add_argument("--edges", type=int, default=5000)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--answering", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()
