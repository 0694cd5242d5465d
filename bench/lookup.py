"""python -m bench.lookup: drafts without a model beside plain decoding, through a server.

A real server and an edge with --draft none, two processes; each prompt is answered with drafts and
without, in turns, and the texts are compared. "nothing repeats" are prompts of random words,
answered at temperature 1.5: whatever is looked up there is wrong. Time behind the first token, and
the time of both processes' CPUs; ratios are plain decoding's by that with drafts, above 1 where
drafts pay. The round trip of --rtt-ms is emulated.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.harness import option_parser, report, whole_number
from runtime.bench.link import Conditions, emulated_link
from runtime.bench.prompts import SHIPPED, Question, read_questions
from runtime.config import NO_MODEL, EdgeConfig
from runtime.demo import server_process
from runtime.edge.client import Edge

COLUMNS = ("task", "answers", "tokens/verification", "speed by plain's", "CPU time", "differ")
HOSTILE = "nothing repeats"
LETTERS = "abcdefghiklmnoprstuvwyz"


@dataclass
class Sums:
    """Of answers of one kind."""

    tokens: int = 0
    rounds: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0


def main() -> int:
    parser = option_parser("bench.lookup", __doc__)
    parser.add_argument("--prompts", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--per-task", type=whole_number, default=2)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-tokens", type=whole_number, default=128)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--rounds", type=whole_number, default=2, help="how often each is asked")
    options = parser.parse_args()
    found = read_questions(options.prompts, options.per_task)
    questions = [*found, *hostile(options.per_task)]
    sums: dict[tuple[str, bool], Sums] = {}
    differ: dict[str, int] = {}
    model = ("--model", options.model, "--threads", "1", "--port", "0")
    conditions = Conditions(rtt_s=options.rtt_ms / 1e3)
    with server_process(*model) as (near, process), emulated_link(near, conditions) as address:
        config = EdgeConfig(
            server=address, draft=NO_MODEL, tokenizer=options.model, max_tokens=options.max_tokens
        )
        for turn in range(options.rounds):
            # two edges, new ones: none has the answer that it writes among its earlier texts
            with Edge(config) as drafting, Edge(replace(config, max_budget=0)) as plain:
                for number, question in enumerate(questions):
                    edges = [drafting, plain] if (turn + number) % 2 else [plain, drafting]
                    texts = ask(edges, question, process.pid, sums)
                    differ[question.task] = differ.get(question.task, 0) + (len(texts) > 1)
    tasks = [*dict.fromkeys(question.task for question in questions)]
    rows = [row(task, options, questions, sums, differ[task]) for task in tasks]
    numbers = {f"speed, {task}": float(line[3]) for task, line in zip(tasks, rows, strict=True)}
    report("drafts by lookup, and plain decoding", COLUMNS, rows, numbers, options.json)
    return 0


def hostile(count: int) -> list[Question]:
    """Prompts of words that nobody has seen."""
    rng = random.Random(5)
    words = ["".join(rng.choices(LETTERS, k=6)) for _ in range(60 * count)]
    return [Question(HOSTILE, " ".join(words[place::count])) for place in range(count)]


def ask(
    edges: list[Edge], question: Question, server: int, sums: dict[tuple[str, bool], Sums]
) -> set[tuple[int, ...]]:
    """With drafts and without; the texts, one where they are the same."""
    texts = set()
    sampled = {"temperature": 1.5, "seed": 7} if question.task == HOSTILE else {}
    for edge in edges:
        cpu_s = time.process_time() + process_s(server)
        answer = edge.generate(question.text, **sampled)
        texts.add(tuple(answer.tokens) if answer.text is not None else ())
        key = question.task, edge.config.max_budget > 0
        stats, total = answer.statistics, sums.setdefault(key, Sums())
        total.tokens += stats.tokens - 1
        total.rounds += (stats.tokens - 1) / max(stats.tokens_per_verification, 1)
        total.seconds += stats.seconds - stats.first_token_s
        total.cpu_s += time.process_time() + process_s(server) - cpu_s
    return texts


def process_s(pid: int) -> float:
    """CPU seconds of another process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(
    task: str,
    options: object,
    questions: list[Question],
    sums: Mapping[tuple[str, bool], Sums],
    differ: int,
) -> tuple[str, ...]:
    drafted, plain = sums[task, True], sums[task, False]
    answers = sum(question.task == task for question in questions) * options.rounds
    speed = plain.seconds / drafted.seconds * drafted.tokens / plain.tokens
    cpu = plain.cpu_s / drafted.cpu_s
    rate = drafted.tokens / drafted.rounds
    return (task, str(answers), f"{rate:.2f}", f"{speed:.2f}", f"{cpu:.2f}", str(differ))


if __name__ == "__main__":
    sys.exit(main())
