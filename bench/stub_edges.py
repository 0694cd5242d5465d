"""Edges of the stub server: they know its text in advance, draft without a model, and check it.

Half of a draft is right and half wrong, so that trees are walked and cut like real ones.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import TextIO
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from bench.stub_server import IDENTITY, VOCABULARY, next_token
from runtime.config import parse_address
from runtime.edge.net.link import Link, Request
from runtime.sampling import Sampling
from runtime.tree import Tree
from runtime.wire import messages as wire

HELLO = wire.Hello(wire.VERSION, VOCABULARY, IDENTITY.vocabulary_hash(VOCABULARY), "stub")
SERVER_OPTIONS = ("--port", "0", "--http", "127.0.0.1:0", "--log-level", "warning")


@dataclass(frozen=True)
class StubServer:
    """A server process, as its edges and its operator see it."""

    url: str
    address: tuple[str, int]
    process: subprocess.Popen[str]
    openai_url: str = ""  # of the API for clients without an edge, where it is on

    async def samples(self) -> dict[str, float]:
        """The samples of /metrics that have no labels, by name without specedge:."""
        page = await asyncio.to_thread(lambda: urlopen(f"{self.url}/metrics").read().decode())
        return {
            sample.name.removeprefix("specedge:"): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if not sample.labels
        }

    @asynccontextmanager
    async def link(self, hello: wire.Hello = HELLO) -> AsyncIterator[Link]:
        """A connection that is admitted. Raises ServerError."""
        link = await Link.open(*self.address, hello)
        try:
            yield link
        finally:
            await link.close()


@contextmanager
def stub_server(step_s: float, *options: str) -> Iterator[StubServer]:
    """A stub server in its own process; it must end well, which includes a recount of its pages."""
    command = [sys.executable, "-m", "bench.stub_server", str(step_s), *SERVER_OPTIONS, *options]
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline().split()
            assert len(line) >= 2, f"the server did not start: {_last_line(log)}"
            yield StubServer(line[0], parse_address(line[-1]), process, *line[1:-1])
            if process.poll() == -signal.SIGKILL:
                return  # as the bench wanted
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=60)
        finally:
            process.kill()
        assert status == 0, f"the server ended with status {status}: {_last_line(log)}"


def _last_line(log: TextIO) -> str:
    log.seek(0)
    return log.read().strip().rpartition("\n")[2]


def text_after(token: int, count: int) -> list[int]:
    """What the stub says."""
    text = []
    for _ in range(count):
        token = next_token(token)
        text.append(token)
    return text


def draft_after(token: int, nodes: int, accepted: int) -> Tree:
    """A chain of which the stub will accept so many nodes, and none of the others."""
    right = text_after(token, accepted)
    wrong = [(next_token([token, *right][-1]) + 1) % VOCABULARY] * (nodes - accepted)
    return Tree((*right, *wrong), tuple(range(nodes)))


async def decode(
    link: Link, prompt: Sequence[int], max_tokens: int, nodes: int
) -> AsyncGenerator[float, None]:
    """A whole answer, drafted `nodes` deep; gives the seconds that each of its verdicts took.

    Raises ServerError. Leaving the iteration early cancels the request.
    """
    request = link.request(prompt, Sampling(max_tokens), nodes)
    text, limit, tree, sent_s = list(prompt), len(prompt) + max_tokens, Tree(), time.monotonic()
    try:
        while not request.finished:
            verdict = await request.verdict()
            yield request.arrived_s - sent_s
            text += [*tree.tokens[: verdict.node], verdict.bonus]
            tree, sent_s = Tree(), time.monotonic()
            if not request.finished and verdict.turn is not wire.Turn.SERVER:
                granted = await _granted(request, verdict)
                depth = min(granted, limit - len(text) - 1)
                tree, sent_s = draft_after(text[-1], depth, depth // 2), time.monotonic()
                request.send(len(text), tree)
        assert text[len(prompt) :] == text_after(prompt[-1], max_tokens), "another text"
    finally:
        request.close()


async def _granted(request: Request, verdict: wire.Verdict) -> int:
    """Nodes of the next draft, as soon as it may be sent."""
    waits = verdict.turn is wire.Turn.WAIT
    return (await request.credit()).max_nodes if waits else verdict.max_nodes
