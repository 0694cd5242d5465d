"""Which runs an evaluation consists of, in which order, and whether their texts are the plain text.

Modes take turns (A B C A B C ...), so that what else the machine does falls on all of them.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

from runtime.bench.figures import Figures, Prices, Spread, figures, spread
from runtime.bench.modes import MODES, REPLAYED, SERVER_ONLY
from runtime.bench.records import Run
from runtime.bench.runs import (
    Setup,
    Shape,
    baseline_worker,
    best_shape,
    replay_worker,
    run_edges,
    run_replayed,
    run_server_only,
    stretch_to_hold,
)
from runtime.bench.workers import Worker

SEARCH_QUESTIONS = 3
LATE = 1.05  # a step is late from so many times its stated time on


@dataclass(frozen=True)
class Case:
    """One row of the table: a mode, and the setup it runs in."""

    mode: str
    setup: Setup
    clients: int
    depth: int | None = None  # a fixed one, where the depth is what is studied

    @property
    def rtt_ms(self) -> float:
        """Of the link between edges and server; the baseline has none."""
        return 0.0 if self.mode == SERVER_ONLY else 1e3 * self.setup.conditions.rtt_s

    @property
    def label(self) -> str:
        depth = f", {self.depth} passes" if self.depth else ""
        return f"{self.mode}{depth}"


@dataclass(frozen=True)
class Row:
    """A case and what its runs gave, one `Figures` for each repetition."""

    case: Case
    figures: tuple[Figures, ...]
    different: int  # answers that are not the plain text
    late: float = 0.0  # share of the steps that took longer than stated

    def median(self) -> Figures:
        """Each number's median over the repetitions."""
        names = [item.name for item in fields(Figures)]
        return Figures(**{n: statistics.median(getattr(f, n) for f in self.figures) for n in names})

    def spread(self, name: str) -> Spread:
        """Median, least and most of one number over the repetitions."""
        return spread([getattr(f, name) for f in self.figures])

    def ratio(self, other: "Row", name: str) -> Spread:
        """This row's number over the other's, repetition by repetition; the last may lack one."""
        pairs = zip(self.figures, other.figures, strict=False)
        return spread([getattr(mine, name) / getattr(theirs, name) for mine, theirs in pairs])


def make_cases(
    setup: Setup,
    modes: Sequence[str],
    rtts_s: Sequence[float],
    depths: Sequence[int],
    replayed: Sequence[int],
) -> list[Case]:
    """The modes at the first round trip, SpecEdge at the others, then fixed depths, then crowds.

    The baseline appears twice, with the trees of one step and with all edges' trees in one step.
    """
    at = [replace(setup, conditions=replace(setup.conditions, rtt_s=rtt_s)) for rtt_s in rtts_s]
    cases = []
    for mode in modes:
        for clients in (setup.batch, setup.edges) if mode == SERVER_ONLY else (setup.edges,):
            cases.append(Case(mode, at[0], clients))
    cases += [Case("specedge", there, setup.edges) for there in at[1:]]
    for there in at if depths else ():
        for depth in depths:
            shape = replace(there.shape, max_beam_len=depth)
            cases.append(Case("no-pipeline", replace(there, shape=shape), setup.edges, depth))
    cases += [Case(REPLAYED, at[0], clients) for clients in replayed]
    return list(dict.fromkeys(cases))


class Laboratory:
    """Runs cases, and keeps the processes that are used again until `stack` is closed."""

    def __init__(self, setup: Setup, stack: ExitStack):
        self.setup = setup
        self._stack = stack
        self._baseline = stack.enter_context(baseline_worker(setup))
        self._baseline_shape = setup.shape
        self._replay: Worker | None = None

    def stretch(self, largest: Shape) -> None:
        """Lengthen all stated times by one factor, if this machine cannot hold them."""
        factor = stretch_to_hold(self._baseline, self.setup, largest, SEARCH_QUESTIONS)
        self.setup = self.setup.stretched(factor)

    def search(self, shapes: Sequence[Shape], say: Callable[[str], None]) -> Shape:
        """Find the baseline's best tree. All modes get its budget: a step shall cost the same."""
        self._baseline_shape, rates = best_shape(
            self._baseline, self.setup, shapes, SEARCH_QUESTIONS
        )
        for tried, rate in rates.items():
            say(f"baseline, {tried.max_budget} nodes, {tried.max_beam_len} passes: {rate:.1f}/s")
        budget = self._baseline_shape.max_budget
        self.setup = replace(self.setup, shape=replace(self.setup.shape, max_budget=budget))
        return self._baseline_shape

    def run(self, case: Case, plain: Run | None) -> Run:
        """One run of a case; replayed drafts were made over the texts of a plain run."""
        if case.mode == SERVER_ONLY:
            return run_server_only(self._baseline, case.setup, case.clients, self._baseline_shape)
        if case.mode == REPLAYED:
            assert plain is not None, "plain texts come before replayed drafts"
            if self._replay is None:
                self._replay = self._stack.enter_context(replay_worker(self.setup, plain))
            return run_replayed(self._replay, case.setup, case.clients)
        return run_edges(case.mode, MODES[case.mode], case.setup)


def run_all(
    laboratory: Laboratory,
    cases: Sequence[Case],
    repeats: int,
    say: Callable[[str], None],
    keep: Callable[[Case, Run], None],
) -> dict[Case, list[Run]]:
    """All cases in turn, `repeats` times over; the first one decodes plainly.

    Each run is given to `keep` as soon as it is there.
    """
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    began_s = time.monotonic()
    for done, case in enumerate([*cases] * repeats):
        left_s = (time.monotonic() - began_s) / max(done, 1) * (repeats * len(cases) - done)
        say(
            f"run {done + 1} of {repeats * len(cases)}: {case.label}, RTT {case.rtt_ms:g} ms"
            + (f"; about {left_s:.0f} s left" if done else "")
        )
        plain = next(iter(runs[cases[0]]), None)
        run = laboratory.run(case, plain)
        keep(case, run)
        runs[case].append(run)
    return runs


def make_rows(runs: Mapping[Case, Sequence[Run]], prices: Prices) -> list[Row]:
    """One row for each case; texts are compared with the first plain run's.

    Raises ValueError if nothing was decoded plainly.
    """
    plain = next((case_runs[0] for case, case_runs in runs.items() if case.mode == "plain"), None)
    if plain is None:
        raise ValueError("texts are judged by the plain ones: the modes must include plain")
    return [
        Row(
            case,
            tuple(figures(run, prices) for run in case_runs),
            sum(different_texts(run, plain) for run in case_runs),
            late_share(case_runs, case.setup.verify_step_s),
        )
        for case, case_runs in runs.items()
    ]


def late_share(runs: Iterable[Run], stated_s: float) -> float:
    """Of the steps that only verify, those that took longer than stated; 0 where nothing is."""
    steps = [step for run in runs for step in run.steps if step.verifies_only]
    late = [step.end_s - step.start_s > LATE * stated_s for step in steps]
    return statistics.fmean(late) if late and stated_s else 0.0


def different_texts(run: Run, plain: Run) -> int:
    """Questions whose answer is not the plain one, those never answered included."""
    right = texts(plain)
    given = texts(run)
    return sum(given.get(question) != ids for question, ids in right.items())


def texts(run: Run) -> dict[int, tuple[int, ...]]:
    return {answer.prompt: answer.ids for answer in run.answers}


def find(rows: Iterable[Row], mode: str) -> Row | None:
    """The first row of a mode without a fixed depth."""
    found = (row for row in rows if row.case.mode == mode and row.case.depth is None)
    return next(found, None)
