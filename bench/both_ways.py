"""The answers to a list of questions in two ways: plainly, and with everything on.

Plainly: straight from the engine, one token a pass, drawn by the reference sampler; no server, no
scheduler, no trees. Or from a server process whose KV pool is too small for all who ask, by edges
that draft ahead over loopback. Knows no text, and compares nothing.
"""

import asyncio
import random
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from urllib.request import urlopen

import torch
from prometheus_client.parser import text_string_to_metric_families

from runtime.config import parse_address
from runtime.demo import running_server
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.loop import Drafting
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Transcript, resuming
from runtime.edge.statistics import Statistics
from runtime.model.engine import Engine, TreeRequest
from runtime.sampling import Sampling
from runtime.wire import messages as wire
from specedge_kernels import reference

PAGE_TOKENS = 16
RECONNECT_S = 60.0
COUNTED = ("num_preemptions", "prefix_cache_hits", "prefix_cache_queries")

Tokens = list[int]
Questions = list[tuple[Tokens, Sampling]]  # a prompt's ids, and how its answer is drawn


@dataclass
class PlainText:
    """An answer as it grows token by token."""

    prompt: Tokens
    sampling: Sampling
    pages: list[int] = field(default_factory=list)
    answer: Tokens = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of the next token."""
        return len(self.prompt) + len(self.answer)

    @property
    def ended(self) -> bool:
        is_full = len(self.answer) == self.sampling.max_tokens
        return is_full or self.answer[-1] in self.sampling.stop_ids

    def request(self) -> TreeRequest:
        """The whole prompt, then one token a pass."""
        new = self.answer[-1:] or self.prompt
        chain, cached = range(-1, len(new) - 1), self.position - len(new)
        return TreeRequest(new, chain, cached, self.pages, (len(new) - 1,))


def plain_texts(engine: Engine, questions: Questions, batch: int) -> list[Tokens]:
    """The answers to all questions, `batch` of them at a time."""
    texts = [PlainText(*question) for question in questions]
    waiting, running = deque(texts), list[PlainText]()
    while waiting or running:
        while waiting and len(running) < batch:
            text = waiting.popleft()
            n_tokens = text.position + text.sampling.max_tokens
            text.pages = engine.kv.allocate(engine.kv.pages_for(n_tokens))
            running.append(text)
        for text, token in zip(running, draw(engine, running), strict=True):
            text.answer.append(token)
            if text.ended:
                engine.kv.free(text.pages)
        running = [text for text in running if not text.ended]
    return [text.answer for text in texts]


def draw(engine: Engine, texts: Sequence[PlainText]) -> Tokens:
    """The next token of each text, by the reference in torch, not by the op of the server."""
    samplings = [text.sampling for text in texts]
    tokens = reference.target_tokens(
        engine.forward([text.request() for text in texts]).cpu(),
        torch.tensor([s.temperature for s in samplings]),
        torch.tensor([s.top_k for s in samplings]),
        torch.tensor([s.top_p for s in samplings]),
        torch.tensor([s.min_p for s in samplings]),
        torch.tensor([s.seed for s in samplings]),
        torch.tensor([text.position for text in texts]),
    )
    return [int(token) for token in tokens]


@dataclass
class Edges:
    """Edges of one server; they share a draft model, so that one pass of it serves all of them."""

    address: tuple[str, int]
    hello: wire.Hello
    drafter: Drafter
    drafting: Drafting
    statistics: Statistics = field(default_factory=Statistics)
    trees: int = 0  # verdicts on drafts that had nodes

    async def ask(self, questions: Questions, edges: int) -> list[Tokens]:
        """The answers to all questions, which the edges take in random order.

        Raises ServerError.
        """
        answers = [Transcript(*question) for question in questions]
        waiting = deque(random.Random(0).sample(answers, len(answers)))
        batcher = Batcher(self.drafter)
        await asyncio.gather(*(self._edge(batcher, waiting) for _ in range(edges)))
        await batcher.close()
        return [answer.accepted for answer in answers]

    async def _edge(self, batcher: Batcher, waiting: deque[Transcript]) -> None:
        """One question after the other over a link of its own."""
        uplink = Uplink(*self.address, self.hello)
        while waiting:
            rounds = resuming(uplink, batcher, waiting.popleft(), self.drafting, RECONNECT_S)
            async with aclosing(rounds):
                async for round_ in rounds:
                    self.statistics.count(round_)
                    self.trees += len(round_.commit.sent) > 0
        await uplink.close()


@dataclass(frozen=True)
class Server:
    """A server process, as its edges and its operator see it."""

    address: tuple[str, int]
    url: str

    def counted(self) -> dict[str, float]:
        """COUNTED, since its start."""
        page = urlopen(f"{self.url}/metrics").read().decode()
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
        return {name: samples[f"specedge:{name}_total"] for name in COUNTED}


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server process with these options on ports that are free. Raises ConnectionError."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        http = f"127.0.0.1:{free.getsockname()[1]}"
    with running_server("--port", "0", "--http", http, *options) as address:
        yield Server(parse_address(address), f"http://{http}")


def scarce_tokens(questions: Questions, edges: int, max_nodes: int) -> int:
    """A KV pool for half of what so many questions want, but for the longest one at least."""
    texts = [len(prompt) + sampling.max_tokens for prompt, sampling in questions]
    longest = max(texts) + max_nodes + PAGE_TOKENS
    return max(longest, edges * sum(texts) // len(texts) // 2)
