"""Table 1 of the paper measured, row by row: the server-only method, and server and edges."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import Any

from runtime.bench.command import read_prices
from runtime.bench.figures import Figures, bound, figures
from runtime.bench.link import Conditions, emulated_link
from runtime.bench.modes import MODES, SERVER_ONLY
from runtime.bench.records import Answer, Run, Step, read_steps, read_trace
from runtime.bench.standin.calibration import BEAMS, WIDTH, name
from runtime.bench.standin.paper import (
    EDGES,
    MEAN_COST_RATIO,
    MEAN_THROUGHPUT_RATIO,
    NODES,
    TABLE_1,
    Row,
    Times,
    times,
)
from runtime.bench.standin.texts import starts
from runtime.bench.table import laid_out
from runtime.bench.timeline import Timeline, second
from runtime.bench.workers import Cores, Worker, ask_all, on_cores
from runtime.demo import running_server

BEAM_LEN = 7  # the most passes of an edge's draft, section 5.2
AT_A_TIME = 6  # rows of the server-only method
LATE_MS, MOST_LATE = 2.0, 0.02  # a step is late by more than that; a share of steps that may be
MOST_OTHERS = 0.05  # of the server's cores that a quiet machine's other programs have
WARM_UP_TOKENS = 24
COLUMNS = (
    *("pair", "task", "tokens/verification", "paper", "server-only", "paper"),
    *("throughput", "paper", "cost", "paper", "latency", "of bound", "late steps", "others had"),
)


@dataclass(frozen=True)
class Measured:
    """One row in one mode, beside the server-only method."""

    pair: str
    task: str
    mode: str
    specedge: Figures
    server_only: Figures
    deviation: float  # of the tokens per verification
    late: float  # share of the steps that took longer than stated
    others: float  # share of the time that others had the server's cores
    rtt_ms: float
    second: Timeline

    @property
    def throughput_ratio(self) -> float:
        return self.specedge.tokens_per_s / self.server_only.tokens_per_s

    @property
    def cost_ratio(self) -> float:
        return self.specedge.ktokens_per_dollar / self.server_only.ktokens_per_dollar

    @property
    def latency_ratio(self) -> float:
        return self.specedge.inter_token_ms / self.server_only.inter_token_ms


def main(options: argparse.Namespace) -> int:
    """Exit status 1 if steps were late, and why. Raises OSError if a file cannot be written."""
    rows = [row for row in TABLE_1 if row.pair in options.pairs and row.task in options.tasks]
    measured = []
    for one in measure(rows, options):
        measured.append(one)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                print(json.dumps(asdict(one)), file=file)
        print(f"{one.mode} {one.pair} {one.task}: {one.throughput_ratio:.2f}", file=sys.stderr)
    for mode in options.modes:
        print(report([one for one in measured if one.mode == mode], mode))
    found = verdicts(measured)
    for sentence in found:
        print(sentence)
    return 1 if found else 0


def verdicts(measured: Sequence[Measured]) -> list[str]:
    """Why figures do not count, in sentences."""
    late = [one for one in measured if one.late > MOST_LATE]
    busy = [one.others for one in late if one.others > MOST_OTHERS]
    found = []
    if busy:
        found.append(
            f"{len(busy)} rows had steps that took longer than stated; other programs had up to "
            f"{max(busy):.0%} of the server's cores meanwhile: try again when this machine is quiet"
        )
    if slow := len(late) - len(busy):
        found.append(
            f"{slow} rows had steps that took longer than stated, and no other program had the "
            "server's cores: this machine is too slow"
        )
    return found


def measure(rows: Sequence[Row], options: argparse.Namespace) -> Iterator[Measured]:
    """The server-only method for all rows, then each row and mode through server and edges."""
    cores = Cores.split()
    alone: dict[str, Run] = {}
    with Worker("runtime.bench.standin.server_only", cores.server, {}) as worker:
        worker.wait_ready()
        for at in range(0, len(rows), AT_A_TIME):
            names = [name(row) for row in rows[at : at + AT_A_TIME]]
            job = {"rows": names, "answers": options.answers, "tokens": options.max_tokens}
            alone |= {key: read_baseline(done) for key, done in worker.ask(job).items()}
    for row in rows:
        pair = times()[row.pair]
        prices = read_prices(pair.server_price, "rtx-4090")
        server_only = figures(alone[name(row)], prices)
        for mode in options.modes:
            run = run_edges(row, pair, mode, options, cores)
            yield Measured(
                *(row.pair, row.task, mode),
                figures(run, prices),
                server_only,
                pstdev(list(gains(run.answers))),
                late_share([*run.steps, *alone[name(row)].steps], pair.verify_ms),
                others_share(run.steps, alone[name(row)].steps),
                options.rtt_ms,
                second(run),
            )


def read_baseline(done: Any) -> Run:
    """What `standin.server_only` says of a row."""
    answers = tuple(map(Answer.read, done["answers"]))
    times_s = done["start_s"], done["end_s"] or done["start_s"]
    steps, drafting = tuple(read_steps(done["steps"])), tuple(map(tuple, done["drafting"]))
    return Run(SERVER_ONLY, 1, 0, *times_s, answers, steps, drafting)


def run_edges(row: Row, pair: Times, mode: str, options: argparse.Namespace, cores: Cores) -> Run:
    """All answers of a row by two edges."""
    with (
        serving(pair, MODES[mode].server, options, cores) as (address, trace),
        edges(row, pair, mode, address, cores) as workers,
    ):
        firsts = starts(options.answers)

        def asker(client: int, worker: Worker) -> Any:
            def ask(number: int) -> Answer:
                question = {"first": firsts[number], "tokens": options.max_tokens}
                answer = Answer.read(worker.ask({"number": number, **question}))
                return replace(answer, client=client)

            return ask

        clients = [asker(client, worker) for client, worker in enumerate(workers)]
        answers, start_s, end_s = ask_all(clients, options.answers)
        steps = tuple(step for step in read_trace(trace) if step.start_s >= start_s)
    return Run(mode, EDGES, EDGES, start_s, end_s, tuple(answers), steps)


@contextmanager
def serving(
    pair: Times, more: Iterable[str], options: argparse.Namespace, cores: Cores
) -> Iterator[tuple[str, Path]]:
    """A server with a stand-in target behind the emulated link, and the trace that it writes."""
    with ExitStack() as stack:
        trace = Path(stack.enter_context(TemporaryDirectory())) / "trace.jsonl"
        with on_cores(cores.server):
            server = running_server(
                *(str(pair.verify_ms * 1e-3), "--port", "0", "--max-batch", "1", *more),
                *("--trace", str(trace)),
                module="runtime.bench.standin.target",
            )
            address = stack.enter_context(server)
        conditions = Conditions(rtt_s=options.rtt_ms * 1e-3)
        yield stack.enter_context(emulated_link(address, conditions)), trace


@contextmanager
def edges(row: Row, pair: Times, mode: str, address: str, cores: Cores) -> Iterator[list[Worker]]:
    """Edges that have answered once."""
    shape = {"max_budget": NODES, "max_n_beams": BEAMS, "max_branch_width": WIDTH}
    setup = {
        "server": address,
        "row": name(row),
        "pass_s": pair.edge_pass_ms * 1e-3,
        "shape": shape | {"max_beam_len": BEAM_LEN},
        "proactive": MODES[mode].edge.get("proactive", "multi"),
        "offers": MODES[mode].edge.get("offers", True),
    }
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker("runtime.bench.standin.edge", cores.edges, setup))
            for _ in range(EDGES)
        ]
        for worker in workers:
            worker.wait_ready()
            worker.ask({"number": -1, "first": 1000, "tokens": WARM_UP_TOKENS})
        yield workers


def gains(answers: Iterable[Answer]) -> Iterator[int]:
    """Tokens of each verification but the first of an answer, which no draft precedes."""
    for answer in answers:
        totals = [total for _, total in answer.arrivals]
        yield from (after - before for before, after in pairwise(totals))


def late_share(steps: Sequence[Step], verify_ms: float) -> float:
    """Of the steps, those that took longer than stated."""
    late = [(step.end_s - step.start_s) * 1e3 > verify_ms + LATE_MS for step in steps]
    return fmean(late) if late else 0.0


def others_share(*runs: Sequence[Step]) -> float:
    """Of the time of all steps but the first of each run, and between them, what others had."""
    longer = [steps for steps in runs if len(steps) > 1]
    had_s = sum(step.others_s for steps in longer for step in steps[1:])
    return had_s / sum(steps[-1].start_s - steps[0].start_s for steps in longer) if longer else 0.0


def report(measured: Sequence[Measured], mode: str) -> str:
    """The table as text."""
    of_paper = {(row.pair, row.task): row for row in TABLE_1}
    lines: list[Sequence[object]] = []
    for one in measured:
        row = of_paper[one.pair, one.task]
        reached = bound(one.server_only, one.specedge)
        lines.append(
            (
                one.pair,
                one.task,
                f"{one.specedge.tokens_per_verification:.2f}±{one.deviation:.2f}",
                f"{row.specedge[0]:.2f}±{row.specedge[1]:.2f}",
                f"{one.server_only.tokens_per_s:.1f}",
                f"{row.server_only_tokens_s:.1f}",
                f"{one.throughput_ratio:.2f}",
                f"{row.throughput_ratio:.2f}",
                f"{one.cost_ratio:.2f}",
                f"{row.cost_ratio:.2f}",
                f"{one.latency_ratio - 1:+.0%}",
                f"{reached.share:.0%}",
                f"{one.late:.1%}",
                f"{one.others:.0%}",
            )
        )
    throughput, cost, latency = (
        fmean(getattr(one, f"{what}_ratio") for one in measured)
        for what in ("throughput", "cost", "latency")
    )
    heading = f"stand-in models at the paper's times, {mode}: beside server-only, each as a ratio"
    means = (
        f"mean of {len(measured)} rows: throughput {throughput:.2f} (paper, all rows: "
        f"{MEAN_THROUGHPUT_RATIO}), cost {cost:.2f} ({MEAN_COST_RATIO}), "
        f"inter-token latency {latency - 1:+.1%} (-11.24 %)"
    )
    return f"{heading}\n{laid_out(COLUMNS, lines)}\n{means}\n"
