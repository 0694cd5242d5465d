"""One file in all engines, question by question in turns, and whether what they say is right.

The judge is transformers in float32 over the same dequantised weights. llama.cpp and our quantised
products round activations to 8 bits, so texts are held to a tolerance: how much likelier than a
chosen token the judge's own choice is, and how far a following token's log-probability is off.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.models import MODELS
from runtime.bench.workers import Worker, available_cores

ROWS = (2, 4, 8, 16)
BEHIND = 128  # tokens of the text that are read before what is timed, but for the prompt itself
REPEATS = 3  # of a step within a turn
TOLERANCE = 0.6  # nats
JUDGE, JUDGE_TURNS = "transformers", 3  # it is slow, and judges the first answers


@dataclass
class Measured:
    """One engine's answers to one question. Greedy ones are the same in all turns."""

    first: Mapping[str, Any]
    off: float  # nats from the judge
    s: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, Any]) -> None:
        """One more turn. Raises ValueError if it is answered in another way than the first."""
        if any(answer[name] != said for name, said in self.first.items() if name != "s"):
            raise ValueError("an engine gave another answer to the same question")
        self.s.append(answer["s"])

    @property
    def median_s(self) -> float:
        return statistics.median(self.s)


@dataclass
class Engine:
    """What was found out about one engine."""

    version: str = ""
    start_s: list[float] = field(default_factory=list)  # from the process's start to a first token
    import_bytes: int = 0
    resident_bytes: int = 0
    measured: dict[str, Measured] = field(default_factory=dict)  # by question


def measure(
    path: Path, text: Sequence[int], threads: int, prompt: int, count: int, turns: int, starts: int
) -> dict[str, Engine]:
    """All engines on one file. `text` has at least `prompt` and BEHIND + 16 tokens, and one more.

    The first turn warms up and is not counted. Raises ValueError if an engine contradicts itself.
    """
    engines = {name: Engine() for name in MODELS}
    for _ in range(starts):
        for name, engine in engines.items():
            engine.start_s.append(start(name, path, threads, text[:32]))
    questions = ask_what(text, prompt, count)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker_of(name, path, threads)) for name in engines}
        for name, worker in workers.items():
            engines[name].version = worker.wait_ready()["version"]
        for key, question in questions.items():  # to warm up, and to be judged
            answers = {name: worker.ask(question) for name, worker in workers.items()}
            for name, answer in answers.items():
                off = worst(answer, answers[JUDGE], workers[JUDGE], question)
                engines[name].measured[key] = Measured(answer, off)
        for turn in range(turns):
            for key, question in questions.items():
                for name, worker in workers.items():
                    if name != JUDGE or turn < JUDGE_TURNS:
                        engines[name].measured[key].add(worker.ask(question))
        for name, worker in workers.items():
            resident = worker.ask({"do": "resident"})
            engines[name].import_bytes = resident["imports"]
            engines[name].resident_bytes = resident["all"]
    return engines


def worker_of(name: str, path: Path, threads: int) -> Worker:
    """An engine in a process with as many cores as it has threads."""
    cores = frozenset(sorted(available_cores())[-threads:])
    setup = {"engine": name, "path": str(path), "threads": threads}
    return Worker("bench.peers.worker", cores, setup)


def start(name: str, path: Path, threads: int, prompt: Sequence[int]) -> float:
    """Seconds from the start of a process to the first token of its first answer."""
    start_s = time.monotonic()
    with worker_of(name, path, threads) as worker:
        worker.wait_ready()
        worker.ask({"do": "read", "ids": list(prompt), "following": []})
        return time.monotonic() - start_s


def ask_what(text: Sequence[int], prompt: int, count: int) -> dict[str, dict[str, Any]]:
    """The questions of one turn. Each forgets what the one before put behind the text."""
    text = list(text)
    questions: dict[str, dict[str, Any]] = {
        "prompt": {"do": "read", "ids": text[:prompt], "following": [text[prompt]]},
        "decode": {
            **{"do": "decode", "length": BEHIND, "first": text[BEHIND], "count": count},
        },
    }
    for rows in ROWS:
        questions[f"rows{rows}"] = {
            **{"do": "rows", "length": BEHIND, "ids": text[BEHIND : BEHIND + rows]},
            **{"following": text[BEHIND + 1 : BEHIND + rows + 1], "repeats": REPEATS},
        }
    return questions


def worst(
    answer: Mapping[str, Any],
    judged: Mapping[str, Any],
    judge: Worker,
    question: Mapping[str, Any],
) -> float:
    """The largest difference of an answer from the judge's, in nats."""
    if "ids" in answer:
        gaps = judge.ask(
            {
                **{"do": "gaps", "length": question["length"], "first": question["first"]},
                "chosen": answer["ids"],
            }
        )
        return max(gaps["gaps"])
    pairs = zip(answer["logprobs"], judged["logprobs"], strict=True)
    return max(abs(one - other) for one, other in pairs)
