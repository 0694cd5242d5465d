"""What running weights in another type or format does to the text, against float32.

Of each prompt the model's greedy continuation is written with float32 weights. Every other way then
reads prompt and continuation in one pass: up to the first token that it would not have chosen, its
own greedy text is the same, so one pass says how long the texts agree. The same passes give the
divergence (Kullback-Leibler) of float32's next tokens from its own, over prompts and continuations,
and the perplexity of the prompts, which people wrote; that one also moves by chance, down as well
as up. Speculation changes no text in any of these ways.

    python -m bench.weights --prompts specbench.jsonl --per-task 6 --ways stored,exact q4_0,rounded
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import Tensor

from bench.harness import option_parser, report, whole_number
from runtime.bench.attempt import attempt
from runtime.bench.prompts import read_questions
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer

CONTEXT_TOKENS, PAGE_TOKENS = 1024, 16
WAYS = ("bfloat16,rounded", "stored,exact", "stored,rounded")


@dataclass(frozen=True)
class Text:
    prompt: list[int]
    answer: list[int]


@dataclass
class Tally:
    """Of one way, over all texts."""

    loss: float = 0.0  # of the prompts, in nats
    predicted: int = 0
    compared: int = 0
    different: int = 0
    divergence: float = 0.0  # of all tokens, in nats
    read: int = 0

    @property
    def perplexity(self) -> float:
        return float(torch.tensor(self.loss / max(self.predicted, 1)).exp())


def main() -> None:
    options = parse_options()
    texts = list(written(options))
    ways = ["float32,exact", *options.ways]
    truth = opened(ways[0], options.model)
    tallies = {way: tally(opened(way, options.model), texts, truth) for way in ways}
    report(
        f"greedy text of {options.model}, {len(texts)} prompts, {options.max_tokens} tokens each",
        (
            *("weights, activations", "texts that differ", "differing token every"),
            *("divergence, nats a token", "perplexity"),
        ),
        [
            (
                way,
                one.different,
                f"{one.compared / one.different:.0f} tokens" if one.different else "-",
                f"{one.divergence / one.read:.4f}",
                f"{one.perplexity:.3f}",
            )
            for way, one in tallies.items()
        ],
        {
            f"{way}_{name}": number
            for way, one in tallies.items()
            for name, number in (
                ("differ", one.different),
                ("divergence", one.divergence / one.read),
                ("perplexity", one.perplexity),
            )
        },
        options.json,
    )


def written(options: argparse.Namespace) -> Iterator[Text]:
    """The prompts that fit and what the model says with float32 weights."""
    tokenizer = Tokenizer.load(options.model)
    engine = opened("float32,exact", options.model)
    for question in read_questions(options.prompts, options.per_task):
        prompt = tokenizer.chat_prompt([{"role": "user", "content": question.text}])
        if len(prompt) + options.max_tokens <= CONTEXT_TOKENS:
            yield Text(prompt, greedy(engine, prompt, options.max_tokens, tokenizer.stop_ids))


def greedy(engine: Engine, prompt: Sequence[int], n: int, stop_ids: frozenset[int]) -> list[int]:
    answer, new, length = [], list(prompt), 0
    while len(answer) < n and not stop_ids.intersection(answer[-1:]):
        logits = engine.forward([chain(new, length, [len(new) - 1])])
        length += len(new)
        new = [int(logits[0].argmax())]
        answer += new
    return answer


def tally(engine: Engine, texts: Sequence[Text], truth: Engine) -> Tally:
    """What an engine makes of the texts that `truth` wrote."""
    total = Tally()
    for text in texts:
        tokens = text.prompt + text.answer
        whole = [chain(tokens[:-1], 0, range(len(tokens) - 1))]
        logits = engine.forward(whole)
        total.divergence += divergence(truth.forward(whole), logits)
        total.read += len(logits)
        first = len(text.prompt) - 1  # the row that predicts the answer's first token
        losses = torch.nn.functional.cross_entropy(
            logits[:first], torch.tensor(text.prompt[1:]), reduction="sum"
        )
        total.loss += float(losses)
        total.predicted += first
        wrong = logits[first:].argmax(-1) != torch.tensor(text.answer)
        total.different += bool(wrong.any())
        total.compared += int(wrong.int().argmax()) + 1 if wrong.any() else len(text.answer)
    return total


def divergence(want: Tensor, got: Tensor) -> float:
    """Sum over the rows, in nats."""
    logs = (got.log_softmax(-1), want.log_softmax(-1))
    return float(torch.nn.functional.kl_div(*logs, reduction="sum", log_target=True))


def opened(way: str, model: str) -> Engine:
    """The engine with all of its pages taken."""
    weights, activations = way.split(",")
    engine = open_engine(
        model, weights, "cpu", lambda _: CONTEXT_TOKENS, PAGE_TOKENS, activations=activations
    )
    engine.kv.allocate(engine.kv.n_free)
    return engine


def chain(tokens: Sequence[int], prefix_len: int, wanted: Sequence[int]) -> TreeRequest:
    pages = range(CONTEXT_TOKENS // PAGE_TOKENS)
    return TreeRequest(tokens, range(-1, len(tokens) - 1), prefix_len, pages, wanted)


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.weights", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--per-task", type=whole_number, default=6, help="prompts of each task")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="weights,activations")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=whole_number, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.weights", main))
