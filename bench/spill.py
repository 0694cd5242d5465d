"""How soon a long chat that comes back has its first token, by where its pages are by then.

Servers in turns, each with edges over TCP: one whose KV pool has held all chats, and three whose
pool holds two of them, with nothing behind it, with host memory, and with a disk behind a memory of
two chats. Each chat is asked once, and after all others once more, one token each; the first time
is what its prompt costs, the second is what is shown. The tokens must be the same everywhere.

    python -m bench.spill [--model smollm2] [--tokens 512 2048] [--chats 5] [--rounds 3] [--json]

The disk's files were just written: a cold disk, and a slow one, takes longer.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")

from bench.harness import option_parser, report, whole_number
from runtime.bench.attempt import attempt
from runtime.bench.figures import spread
from runtime.bench.table import show
from runtime.config import EdgeConfig, ServerConfig
from runtime.edge.client import Edge
from runtime.model.open import open_engine
from runtime.serve import Server

COLUMNS = ("prompt tokens", "its pages are", "first token, ms", "of computing it")
PAGE_TOKENS = 16

Place = tuple[str, dict[str, Any]]  # where pages are, and options of the server


def main() -> None:
    parser = option_parser("bench.spill", __doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--weights", default="stored")
    parser.add_argument("--tokens", nargs="+", type=whole_number, default=[512, 2048])
    parser.add_argument("--chats", type=whole_number, default=5)
    parser.add_argument("--rounds", type=whole_number, default=3)
    options = parser.parse_args()
    rows, numbers = [], {}
    page_bytes = bytes_per_page(options.model, options.weights)
    for tokens in options.tokens:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            edges = {
                place: stack.enter_context(serving(options.model, options.weights, config))
                for place, config in places(tokens, options.chats, page_bytes, folder)
            }
            times = come_back(edges, tokens, options.chats, options.rounds)
        computed_s, _, _ = spread(times["nowhere"])
        for place, several in times.items():
            seen = spread([time_s * 1e3 for time_s in several])
            share = spread(several)[0] / computed_s
            numbers[f"{place}, {tokens} tokens"] = share
            rows.append((tokens, place, show(seen, 1), f"{share:.3f}"))
    title = f"{options.chats} chats of {options.model} that come back: median [least-most]"
    report(title, COLUMNS, rows, numbers, options.json)


def places(tokens: int, chats: int, page_bytes: int, folder: str) -> Iterator[Place]:
    """Options of the servers, by where they have the pages of a chat that comes back."""
    pages = tokens // PAGE_TOKENS + 8
    two, all_of_them = 2 * pages * PAGE_TOKENS, (chats + 1) * pages * PAGE_TOKENS
    gib = (chats + 1) * pages * page_bytes / 2**30
    yield "nowhere", {"kv_tokens": two}
    yield "in the pool", {"kv_tokens": all_of_them}
    yield "in memory", {"kv_tokens": two, "spill_memory_gib": gib}
    memory = {"kv_tokens": two, "spill_memory_gib": gib / (chats + 1) * 2}
    yield "on disk", {**memory, "spill_disk_gib": gib, "spill_folder": folder}


def bytes_per_page(model: str, weights: str) -> int:
    return open_engine(model, weights, "cpu", lambda _: PAGE_TOKENS, PAGE_TOKENS).kv.bytes_per_page


@contextmanager
def serving(model: str, weights: str, options: dict[str, object]) -> Iterator[Edge]:
    """An edge without a draft, of a server of its own."""
    config = ServerConfig(
        model=model, weights=weights, port=0, http="", max_nodes=0, max_requests=1, **options
    )
    with Server(config) as server:
        asks = EdgeConfig(server=server.address, draft="none", tokenizer=model, max_budget=0)
        with Edge(asks) as edge:
            yield edge


def come_back(
    edges: dict[str, Edge], tokens: int, chats: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds to the first token of chats that were asked before, by place."""
    times: dict[str, list[float]] = {place: [] for place in edges}
    dice = random.Random(tokens)
    for _ in range(rounds):
        prompts = [chat(dice, tokens) for _ in range(chats)]
        for prompt in prompts:
            asked = [ask(edge, prompt) for edge in edges.values()]
        for prompt in prompts:
            asked = {place: ask(edge, prompt) for place, edge in edges.items()}
            if len({token for token, _ in asked.values()}) != 1:
                raise SystemExit("the first token depends on where the pages were")
            for place, (_, time_s) in asked.items():
                times[place].append(time_s)
    return times


def chat(dice: random.Random, tokens: int) -> list[int]:
    """Ids that every usual vocabulary has."""
    return [dice.randrange(1000, 5000) for _ in range(tokens)]


def ask(edge: Edge, prompt: Sequence[int]) -> tuple[int, float]:
    """The first token of an answer, and the seconds until it was there."""
    begun_s = time.perf_counter()
    answer = edge.generate(prompt, raw=True, max_tokens=1)
    answer.text  # noqa: B018 - waits for it
    return answer.tokens[0], time.perf_counter() - begun_s


if __name__ == "__main__":
    sys.exit(attempt("bench.spill", main))
