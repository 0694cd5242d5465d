"""Both products' servers, plain and with the same draft, question by question in turns.

SpecEdge's server and edge are two processes with `threads` each, as on two machines; llama.cpp
drafts in its server, in turns with verifying. Its draft is ours as GGUF at 8 bits, with a head for
the whole vocabulary: that format has no smaller one. Each text is compared with the plain text of
the same server. Tokens a second count from the first token on, by the clock.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from runtime.bench.machine import resident_bytes
from runtime.bench.workers import Worker, available_cores
from runtime.demo import server_process
from runtime.edge.client import Edge, EdgeConfig
from runtime.model.tokenizer import Tokenizer

SPECEDGE, LLAMA_CPP = "specedge", "llama.cpp"


@dataclass
class Served:
    """One server, plain or with drafts."""

    ready_s: float = 0.0  # from its command on
    resident_bytes: int = 0  # after the last answer
    tokens_per_s: list[float] = field(default_factory=list)
    tokens_per_verification: list[float] = field(default_factory=list)
    different: int = 0  # texts that are not the plain text

    @property
    def median_tokens_per_s(self) -> float:
        return statistics.median(self.tokens_per_s)


def measure(
    path: Path, draft: Path, questions: Sequence[str], threads: int, count: int
) -> dict[str, Served]:
    """Each question to all servers; the first warms up and is not counted."""
    tokenizer = Tokenizer.load(path)
    prompts = [tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in questions]
    with ExitStack() as stack:
        start_s = time.monotonic()
        options = ("--model", str(path), "--port", "0", "--threads", str(threads))
        address, server = stack.enter_context(server_process(*options))
        served = {SPECEDGE: Served(time.monotonic() - start_s)}
        config = EdgeConfig(server=address, max_tokens=count, earlier_tokens=0)
        edge = stack.enter_context(Edge(config))
        workers = {}
        for name, file in ((LLAMA_CPP, None), (f"{LLAMA_CPP}, draft", draft)):
            start_s = time.monotonic()
            workers[name] = stack.enter_context(llama_server(path, file, threads))
            workers[name].wait_ready()
            served[name] = Served(time.monotonic() - start_s)
        served[f"{SPECEDGE}, draft"] = Served(served[SPECEDGE].ready_s)
        for turn, (text, prompt) in enumerate(zip(questions, prompts, strict=True)):
            ask_ours(edge, text, served, counts=turn > 0)
            ask_theirs(workers, prompt, count, served, counts=turn > 0)
        for name in (SPECEDGE, f"{SPECEDGE}, draft"):
            served[name].resident_bytes = resident_bytes(server.pid)
    return served


def llama_server(path: Path, draft: Path | None, threads: int) -> Worker:
    cores = frozenset(sorted(available_cores())[-threads:])
    setup = {"path": str(path), "threads": threads, "draft": None if draft is None else str(draft)}
    return Worker("bench.peers.llama_server", cores, setup)


def ask_ours(edge: Edge, text: str, served: dict[str, Served], counts: bool) -> None:
    """One question to our server, without drafts and with them."""
    plain: list[int] = []
    for name, options in ((SPECEDGE, {"max_budget": 0}), (f"{SPECEDGE}, draft", {})):
        answer = edge.generate(text, **options)
        for _ in answer:
            pass
        stats, one = answer.statistics, served[name]
        plain = plain or answer.tokens
        one.different += answer.tokens != plain
        if counts:
            one.tokens_per_s.append((stats.tokens - 1) / (stats.seconds - stats.first_token_s))
            one.tokens_per_verification.append(stats.tokens_per_verification)


def ask_theirs(
    workers: dict[str, Worker],
    prompt: list[int],
    count: int,
    served: dict[str, Served],
    counts: bool,
) -> None:
    """The same to llama.cpp's servers."""
    plain = ""
    for name, worker in workers.items():
        answer, one = worker.ask({"ids": prompt, "count": count}), served[name]
        plain = plain or answer["text"]
        one.different += answer["text"] != plain
        one.resident_bytes = answer["resident"]
        if counts:
            one.tokens_per_s.append(answer["tokens_per_s"])
            # a verification gives its own token and those of the draft that it accepts
            rounds = answer["tokens"] - answer["accepted"]
            one.tokens_per_verification.append(answer["tokens"] / rounds)
