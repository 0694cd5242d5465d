"""Tokens gained per verification, by task, and whether the text equals plain decoding.

Runs drafter and verifier of the product in one process, without a network: what is counted depends
on the models only, not on the speed of this machine. Prompts come from a file of Spec-Bench's
form, one JSON object a line with `category` and `turns`; the first turn is used.

    python -m bench.acceptance --prompts specbench.jsonl --per-task 8

With --proactive the edge drafts on after sending, for a fixed number of passes in place of the time
that a verdict takes. A verdict is foreseen if its bonus token has been expanded by then.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")

from bench.harness import option_parser, report, whole_number
from runtime.bench.attempt import attempt
from runtime.bench.prompts import read_questions
from runtime.config import WEIGHTS, EdgeConfig
from runtime.edge.draft.batcher import Drafts
from runtime.edge.draft.guide import Guide
from runtime.edge.draft.speculation import Commit, Noise, Pass, Proactive, Speculation, TreeShape
from runtime.edge.loading import make_drafter
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.server.request import Guide as TargetGuide
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Failed, Verified, verify_batch
from runtime.tree import ROOT, Tree
from runtime.wire.messages import Open

CONTEXT_TOKENS = 2048
COLUMNS = (
    *("task", "prompts", "tokens", "verifications", "tokens/verification", "texts not plain"),
    *("passes/draft", "foreseen", "ahead of use"),
)


@dataclass
class Count:
    """Sums over prompts; the first verdict of each is not counted: no draft precedes it."""

    prompts: int = 0
    tokens: int = 0
    rounds: int = 0
    passes: int = 0  # of the draft model, before trees were sent
    foreseen: int = 0  # verdicts
    ahead: int = 0  # nodes expanded while trees were in flight
    reused: int = 0  # of these, nodes left of use
    different: int = 0  # texts that are not the plain text

    def add(self, commits: Sequence[Commit], passes: int) -> None:
        """Count one answer."""
        self.prompts += 1
        self.rounds += len(commits)
        self.passes += passes
        self.tokens += sum(len(commit.tokens) for commit in commits)
        self.foreseen += sum(commit.hit for commit in commits)
        self.ahead += sum(commit.n_ahead for commit in commits)
        self.reused += sum(commit.n_reused for commit in commits)

    @property
    def rate(self) -> float:
        """Tokens per verification."""
        return self.tokens / max(self.rounds, 1)

    def row(self, name: str) -> tuple[object, ...]:
        rounds = max(self.rounds, 1)
        text = (name, self.prompts, self.tokens, self.rounds, f"{self.rate:.2f}", self.different)
        passes, foreseen = f"{self.passes / rounds:.2f}", f"{self.foreseen / rounds:.0%}"
        return (*text, passes, foreseen, f"{self.reused / max(self.ahead, 1):.0%}")


@dataclass(frozen=True)
class Ahead:
    """What is drafted while a tree is being verified."""

    proactive: Proactive = Proactive.OFF
    passes: int = 0


def answer(
    engine: Engine,
    drafter: Drafts,
    prompt: list[int],
    params: Open,
    shape: TreeShape,
    coupling: bool = True,
    ahead: Ahead = Ahead(),
    target_guide: TargetGuide | None = None,
    draft_guide: Guide | None = None,
) -> tuple[list[int], list[Commit], int]:
    """One prompt's tokens, what each verdict brought, and passes of the draft before sending.

    The guides hold target and draft to a constraint.
    """
    request = Request("bench", params, limit=len(prompt) + params.max_tokens, context=list(prompt))
    request.adapter = len(engine.model.adapters) - 1  # the one that there is, or none
    request.pages, request.guide = engine.kv.allocate(engine.kv.n_free), target_guide
    noise = Noise(params.seed, params.temperature if coupling else 0.0)
    both = min(drafter.vocabulary_size, engine.model.vocab_size)
    speculation = Speculation(list(prompt), request.limit, shape, ahead.proactive, noise, both)
    speculation.guide = draft_guide
    commits: list[Commit] = []
    passes = 0
    while True:
        for _ in range(ahead.passes):
            if frontier := speculation.frontier_ahead():
                drafter.run([Pass(speculation, frontier)])
        verified = verify(engine, request)
        verified.commit()
        commits.append(speculation.commit(verified.path[-1], verified.bonus))
        if request.finish:
            break
        passes += grow(drafter, speculation)
        tree = speculation.send(max_nodes=255)
        request.draft = Tree(tree.tokens, tree.parents)
    engine.kv.free(request.pages)
    drafter.finish(speculation)
    return request.context[len(prompt) :], commits, passes


def grow(drafter: Drafts, speculation: Speculation) -> int:
    """Run the text that the cache lacks, then deepen the tree; how many passes it took."""
    passes = deeper = 0
    while frontier := speculation.frontier(max_nodes=255):
        deeper += frontier != [ROOT]
        if deeper == speculation.shape.max_beam_len:
            break
        drafter.run([Pass(speculation, frontier)])
        passes += 1
    return passes


def open_model(name: str, weights: str, adapter: Path | None = None) -> Engine:
    """A model with room for one context, and an adapter for all that it is asked, or none."""
    adapters = {"the adapter": adapter} if adapter else {}
    return open_engine(name, weights, "cpu", lambda _: CONTEXT_TOKENS, 16, adapters=adapters)


def verify(engine: Engine, request: Request) -> Verified:
    """One step of the server for one request."""
    for outcome in verify_batch(engine, [Work(request, request.uncached, verify=True)]):
        match outcome:
            case Failed(sentence=sentence):
                raise SystemExit(sentence)
            case Verified():
                return outcome
    raise AssertionError("a step without a verdict")


def main() -> None:
    options = parse_options()
    ahead = Ahead(Proactive(options.proactive), options.proactive_passes)
    counts = measure(options, ahead)
    everything = counts.pop("all")
    passes_ahead = f", {ahead.passes} passes ahead: {ahead.proactive.value}"
    report(
        f"tokens per verification: {options.draft} for {options.model}, {options.weights}, "
        f"T = {options.temperature:g}, {options.max_budget} nodes"
        + ("" if options.coupling else ", not coupled")
        + (passes_ahead if ahead.proactive is not Proactive.OFF else "")
        + ("" if options.check else " (not compared with plain decoding)"),
        COLUMNS,
        [*(count.row(task) for task, count in counts.items()), everything.row("all")],
        {
            "tokens_per_verification": everything.rate,
            "passes_per_draft": everything.passes / max(everything.rounds, 1),
            "verdicts_foreseen": everything.foreseen / max(everything.rounds, 1),
            "nodes_ahead": everything.ahead,
            "nodes_ahead_of_use": everything.reused,
            "texts_not_plain": everything.different,
            "prompts": everything.prompts,
        },
        options.json,
    )


def measure(options: argparse.Namespace, ahead: Ahead) -> dict[str, Count]:
    """Of each task, and of "all" prompts that fit the context."""
    engine = open_model(options.model, options.weights, options.adapter)
    drafter = make_drafter(
        EdgeConfig(
            draft=options.draft,
            tokenizer=options.model,
            weights=options.weights,
            earlier_tokens=options.earlier_tokens,
        )
    )
    tokenizer = Tokenizer.load(options.model)
    shape = TreeShape(options.max_budget, options.max_n_beams, options.max_beam_len, options.width)
    questions = read_questions(options.prompts, options.per_task)
    counts: dict[str, Count] = {}
    rounds = options.rounds * [questions * options.seeds]
    for number, question in enumerate(chain.from_iterable(rounds)):
        if number % len(rounds[0]) == 0:
            counts = {}  # the last round counts
        seed = 1 + number % len(rounds[0]) // len(questions)
        prompt = tokenizer.chat_prompt([{"role": "user", "content": question.text}])
        if len(prompt) + options.max_tokens + 256 > CONTEXT_TOKENS:
            continue
        params = Open(
            request=1, seed=seed, temperature=options.temperature, top_p=1.0, min_p=0.0, top_k=0,
            max_tokens=options.max_tokens, prompt_tokens=len(prompt),
            stop_ids=tuple(tokenizer.stop_ids),
        )  # fmt: skip
        tokens, commits, passes = answer(
            engine, drafter, prompt, params, shape, options.coupling, ahead
        )
        plain = tokens
        if options.check:
            plain, _, _ = answer(engine, drafter, prompt, params, TreeShape(0, 1, 1, 1))
        for count in (counts.setdefault(question.task, Count()), counts.setdefault("all", Count())):
            count.add(commits[1:], passes)
            count.different += tokens != plain
    return counts


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.acceptance", __doc__)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE")
    parser.add_argument("--per-task", type=whole_number, default=8, help="prompts of each task")
    parser.add_argument(
        "--rounds", type=whole_number, default=1, help="ask all so often; the last time counts"
    )
    parser.add_argument("--seeds", type=whole_number, default=1, help="answers to each prompt")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="smollm2-draft")
    parser.add_argument("--weights", default="stored", choices=WEIGHTS)
    parser.add_argument("--max-tokens", type=whole_number, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-budget", type=int, default=32)
    parser.add_argument("--max-n-beams", type=int, default=6)
    parser.add_argument("--max-beam-len", type=int, default=6)
    parser.add_argument("--width", type=int, default=6, help="children considered per node")
    parser.add_argument(
        "--earlier-tokens",
        type=int,
        default=0,
        help="of the answers before, kept to look words up in",
    )
    parser.add_argument("--adapter", type=Path, help="with which the target answers")
    parser.add_argument("--coupling", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--proactive", default="off", choices=[mode.value for mode in Proactive])
    parser.add_argument(
        "--proactive-passes", type=int, default=3, help="passes while a tree is verified"
    )
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(attempt("bench.acceptance", main))
