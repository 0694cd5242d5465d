"""Is the text with everything on the plain text? Real prompts, compared token by token.

Each prompt is answered twice (both_ways.py): plainly, and by a server that is short of memory,
learns whose drafts pay, and verifies while its edges draft ahead. Prompts are the turns in a file
of Spec-Bench's form, one JSON object a line; the seed of each is its number.

    python -m bench.lossless --prompts specbench.jsonl --count 500 --temperature 0 0.3 1 1.5
    python -m bench.lossless --prompts specbench.jsonl -- --max-batch 8 --no-pipeline

On a CPU a text that differs is an error, in float32 and in bfloat16. On a GPU sums depend on the
batch, and how often a token differs is what is reported.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from bench.both_ways import (
    PAGE_TOKENS,
    Edges,
    Questions,
    Tokens,
    plain_texts,
    scarce_tokens,
    serving,
)
from bench.harness import option_parser, report
from runtime.bench.attempt import attempt
from runtime.bench.prompts import SHIPPED, read_turns
from runtime.config import WEIGHTS
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import MAX_EXPANDED, TreeShape
from runtime.edge.loop import Drafting
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.sampling import Sampling
from runtime.wire import messages as wire

FORMATS = {
    "prompts": "d",
    "tokens": "d",
    "texts that differ": "d",
    "tokens compared": "d",
    "tokens/verification": ".2f",
    "with a tree": ".0%",
    "foreseen": ".0%",
    "preemptions": ".0f",
    "prefix hits": ".0%",
    "wall, s": ".0f",
}


@dataclass(frozen=True)
class Difference:
    """Where two answers to a prompt part; None is the end of an answer."""

    prompt: int
    position: int
    plain: int | None
    other: int | None


@dataclass(frozen=True)
class Comparison:
    """All answers at one temperature, both ways, and what they took."""

    temperature: float
    plain: list[Tokens]
    answers: list[Tokens]
    figures: dict[str, float]  # of the way with everything on

    @property
    def differences(self) -> list[Difference]:
        pairs = zip(self.plain, self.answers, strict=True)
        found = (difference(prompt, *pair) for prompt, pair in enumerate(pairs))
        return [one for one in found if one is not None]

    def numbers(self) -> dict[str, float]:
        """By column. Tokens are compared up to the first that differs: then texts go apart."""
        tokens, differences = sum(map(len, self.plain)), self.differences
        apart = sum(len(self.plain[d.prompt][d.position + 1 :]) for d in differences)
        return {
            "prompts": len(self.plain),
            "tokens": tokens,
            "texts that differ": len(differences),
            "tokens compared": tokens - apart,
            **self.figures,
        }

    def complaints(self) -> Iterator[str]:
        """A line for each text that differs, and how often a token does."""
        for one in self.differences:
            yield (
                f"T = {self.temperature:g}, prompt {one.prompt}: token {one.position} is "
                f"{one.plain} plainly, {one.other} with everything on"
            )
        if self.differences:
            rate = self.numbers()["tokens compared"] / len(self.differences)
            yield f"T = {self.temperature:g}: one token in {rate:.0f} differs"


def difference(prompt: int, plain: Tokens, other: Tokens) -> Difference | None:
    """The first position at which two answers are not the same; None if they are."""
    for position in range(max(len(plain), len(other))):
        a, b = (text[position] if position < len(text) else None for text in (plain, other))
        if a != b:
            return Difference(prompt, position, a, b)
    return None


def read_prompts(path: Path, count: int) -> list[str]:
    """`count` prompts, spread evenly over the file: first turns, later ones where they run out.

    Raises OSError if there is no such file, ValueError if a line of it is something else.
    """
    questions = [turns for _, turns in read_turns(path)]
    first = [turns[0] for turns in questions]
    later = [turn for turns in questions for turn in turns[1:]]
    return evenly(first, count) + evenly(later, count - len(first))


def evenly(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of the texts, at even distances."""
    count = min(max(count, 0), len(texts))
    return [texts[i * len(texts) // count] for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 if a text differs where none may, 2 if the comparison could not be made."""
    options = parse_options(argv)
    return attempt("bench.lossless", lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    """Print what was found; 1 if a text differs where none may."""
    tokenizer = Tokenizer.load(options.draft)
    asked = questions_of(options, tokenizer)
    plain, is_exact = answer_plainly(options, asked)
    comparisons = list(compare(options, tokenizer, asked, plain))
    for one in comparisons:
        for line in one.complaints():
            print(line, file=sys.stderr)
    rows = [(f"{one.temperature:g}", one.numbers()) for one in comparisons]
    report(
        f"answers of up to {options.max_tokens} tokens, plainly and with everything on: "
        f"{options.draft} for {options.model}, {options.weights}, {options.max_budget} nodes",
        ("T", *FORMATS),
        [(t, *(format(row[name], FORMATS[name]) for name in FORMATS)) for t, row in rows],
        {f"T = {t}: {name}": number for t, row in rows for name, number in row.items()},
        options.json,
    )
    return 1 if is_exact and any(one.differences for one in comparisons) else 0


def questions_of(options: argparse.Namespace, tokenizer: Tokenizer) -> dict[float, Questions]:
    """The same prompts at each temperature. Raises ValueError if there are none."""
    texts = read_prompts(options.prompts, options.count)
    prompts = [tokenizer.chat_prompt([{"role": "user", "content": text}]) for text in texts]
    prompts = [prompt for prompt in prompts if len(prompt) <= options.max_prompt]
    if not prompts:
        raise ValueError(f"{options.prompts} has no prompt of at most {options.max_prompt} tokens")
    # the server adds those of the target
    stop_ids = tuple(sorted(tokenizer.stop_ids | Tokenizer.load(options.model).stop_ids))
    return {
        temperature: [
            (prompt, Sampling(options.max_tokens, temperature, seed=seed, stop_ids=stop_ids))
            for seed, prompt in enumerate(prompts)
        ]
        for temperature in options.temperature
    }


def answer_plainly(
    options: argparse.Namespace, asked: Mapping[float, Questions]
) -> tuple[dict[float, list[Tokens]], bool]:
    """The plain answers at each temperature, and whether others must equal them on this device."""
    engine = open_for(options, options.model, options.plain_batch, asked)
    is_exact = engine.model.device.type == "cpu"
    return {
        temperature: plain_texts(engine, questions, options.plain_batch)
        for temperature, questions in asked.items()
    }, is_exact


def compare(
    options: argparse.Namespace,
    tokenizer: Tokenizer,
    asked: Mapping[float, Questions],
    plain: Mapping[float, list[Tokens]],
) -> Iterator[Comparison]:
    """Ask again with everything on. Raises ConnectionError."""
    name, size = Path(options.draft).name, tokenizer.vocabulary_size
    hello = wire.Hello(wire.VERSION, size, tokenizer.vocabulary_hash(), name)
    torch.cuda.empty_cache()  # of the plain engine: the server needs it now
    drafter = Drafter(open_for(options, options.draft, options.edges, asked))
    drafting = Drafting(TreeShape(options.max_budget, 6, 6, 6))
    with serving(*server_options(options, asked)) as server:
        for temperature, questions in asked.items():
            edges = Edges(server.address, hello, drafter, drafting)
            before, start_s = server.counted(), time.monotonic()
            answers = asyncio.run(edges.ask(questions, options.edges))
            wall_s, now = time.monotonic() - start_s, server.counted()
            counted = {name: now[name] - before[name] for name in now}
            figures = make_figures(edges, len(questions), counted, wall_s)
            yield Comparison(temperature, plain[temperature], answers, figures)


def make_figures(
    edges: Edges, questions: int, counted: Mapping[str, float], wall_s: float
) -> dict[str, float]:
    """What the answers took. An answer's first verdict has no draft before it and is left out."""
    stats = edges.statistics
    rounds = max(stats.verifications - questions, 1)
    return {
        "tokens/verification": (stats.tokens - questions) / rounds,
        "with a tree": edges.trees / rounds,
        "foreseen": stats.hits / max(stats.rounds_ahead, 1),
        "preemptions": counted["num_preemptions"],
        "prefix hits": counted["prefix_cache_hits"] / max(counted["prefix_cache_queries"], 1),
        "wall, s": wall_s,
    }


def open_for(
    options: argparse.Namespace, model: str, requests: int, asked: Mapping[float, Questions]
) -> Engine:
    """An engine with KV for so many of the questions at a time, and trees under them."""
    (questions, *_) = asked.values()
    longest = max(len(prompt) for prompt, _ in questions) + options.max_tokens
    kv_tokens = requests * (longest + MAX_EXPANDED + PAGE_TOKENS)
    return open_engine(model, options.weights, options.device, lambda _: kv_tokens, PAGE_TOKENS)


def server_options(options: argparse.Namespace, asked: Mapping[float, Questions]) -> list[str]:
    """Those of the server, the last ones given by hand."""
    (questions, *_) = asked.values()
    kv_tokens = scarce_tokens(questions, options.edges, options.max_budget)
    return [
        *("--model", options.model, "--weights", options.weights, "--device", options.device),
        *("--max-nodes", str(options.max_budget), "--max-batch", str(max(options.edges // 2, 1))),
        *("--kv-tokens", str(kv_tokens), "--page-size", str(PAGE_TOKENS), *options.more),
    ]


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = option_parser("bench.lossless", __doc__)
    parser.add_argument("--prompts", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--count", type=int, default=60, help="prompts, evenly over the file")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument(
        "--max-prompt", type=int, default=2048, help="leave out longer ones, tokens"
    )
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="smollm2-draft")
    parser.add_argument("--weights", default="stored", choices=WEIGHTS)
    parser.add_argument("--device", default="auto", help="of both models: auto, cpu or cuda")
    parser.add_argument("--plain-batch", type=int, default=16, help="plain answers at a time")
    parser.add_argument("--edges", type=int, default=8, help="that ask at the same time")
    parser.add_argument("--max-budget", type=int, default=32, help="nodes of a tree")
    parser.add_argument("more", nargs="*", help="after --: further options of runtime.server")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
