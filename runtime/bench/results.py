"""The file of --json: an evaluation written while it goes on, and read again to be drawn.

The first line says how it was set up, each further one is a run with all that its clients and its
server saw, and the last one the figures made of them. A stopped evaluation keeps its runs.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from runtime.bench.evaluation import Case
from runtime.bench.figures import Prices
from runtime.bench.link import Conditions
from runtime.bench.records import Run
from runtime.bench.runs import Setup, Shape
from runtime.bench.workers import Cores


@dataclass(frozen=True)
class Evaluation:
    """What all runs of a file share; `shape` is the baseline's tree."""

    setup: Setup
    shape: Shape
    prices: Prices
    objective_ms: float | None
    machine: Mapping[str, str]


def begin(path: Path, evaluation: Evaluation) -> None:
    """Write the first line, and nothing else. Raises OSError."""
    line = asdict(evaluation)
    setup = line["setup"]
    setup["cores"] = {whose: sorted(cores) for whose, cores in setup["cores"].items()}
    link = setup["conditions"]  # JSON knows no infinity
    setup["conditions"] = {name: None if value == inf else value for name, value in link.items()}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")


def add(path: Path, line: Mapping[str, Any]) -> None:
    """Put a line behind the others. Raises OSError."""
    with path.open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)


def line_of(case: Case, run: Run) -> dict[str, Any]:
    """A run as a line."""
    rtt_s = case.setup.conditions.rtt_s
    place = {"mode": case.mode, "clients": case.clients, "rtt_s": rtt_s, "depth": case.depth}
    return {**place, "run": asdict(run)}


def is_evaluation(path: Path) -> bool:
    """Whether a file begins as `begin` writes it. Raises OSError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith('{"setup"')


def read(path: Path) -> tuple[Evaluation, dict[Case, list[Run]]]:
    """The runs by their cases, in the order of writing; the line of figures is passed over.

    Raises ValueError that names a line that is none of such a file's, and OSError.
    """
    evaluation: Evaluation | None = None
    runs: dict[Case, list[Run]] = {}

    def take(line: Any) -> None:
        nonlocal evaluation
        if evaluation is None:
            evaluation = _evaluation(line)
        elif "run" in line:
            runs.setdefault(_case(line, evaluation.setup), []).append(Run.read(line["run"]))

    take_lines(path, take, "a run, as --json has it")
    if evaluation is None or not runs:
        raise ValueError(f"{path} has no run yet")
    return evaluation, runs


def take_lines(path: Path, take: Callable[[Any], None], expected: str) -> None:
    """Give `take` what each line of a file of JSON lines holds; `expected`: what a line should be.

    Raises ValueError that names a line that is no JSON or that `take` cannot use, OSError.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            take(json.loads(line))
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise ValueError(f"{path}, line {number}: expected {expected}") from error


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    setup = line["setup"]
    link = {name: inf if value is None else value for name, value in setup["conditions"].items()}
    parts = {
        "questions": tuple(setup["questions"]),
        "shape": Shape(**setup["shape"]),
        "conditions": Conditions(**link),
        "cores": Cores(**{whose: frozenset(cores) for whose, cores in setup["cores"].items()}),
    }
    return Evaluation(
        setup=Setup(**{**setup, **parts}),
        shape=Shape(**line["shape"]),
        prices=Prices(**line["prices"]),
        objective_ms=line["objective_ms"],
        machine=line["machine"],
    )


def _case(line: Mapping[str, Any], setup: Setup) -> Case:
    conditions = replace(setup.conditions, rtt_s=line["rtt_s"])
    there = replace(setup, conditions=conditions)
    return Case(line["mode"], there, line["clients"], line["depth"])
