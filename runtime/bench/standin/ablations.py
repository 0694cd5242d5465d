"""Simulated: what each part of SpecEdge, the link and the edges are worth to the rows of Table 1.

The server's policies, and the edges' own trees and rules, in reckoned time, with the stand-in
models of `table`: a step takes the stated time of its trees, a pass of the draft that of its
device. Texts do not end and prompts are not read. The server-only method, of the same batch, is not
simulated: a cycle is the passes of its tree and a step, and what it gains is calibrated.
"""

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from runtime.bench.command import read_prices
from runtime.bench.figures import figures
from runtime.bench.simulation import Accelerator, Device, Simulation
from runtime.bench.standin.agreement import TOKENS
from runtime.bench.standin.calibration import name, server_only_tokens
from runtime.bench.standin.grid import BASE, CELLS, CHECKED_TASK, RTX_4090, Cell
from runtime.bench.standin.paper import (
    MEAN_COST_RATIO,
    MEAN_THROUGHPUT_RATIO,
    NODES,
    TABLE_1,
    Row,
    step_points,
    times,
)
from runtime.bench.standin.simulated import trips
from runtime.bench.standin.table import BEAM_LEN, late_share, run_edges
from runtime.bench.table import laid_out
from runtime.bench.workers import Cores
from runtime.edge.draft.speculation import Proactive
from runtime.server.policy.credits import POLICIES

SETTLE_S = 3.0
COUNTED_S, LEAST_S = 16.0, 4.0  # with one tree in a step; the more trees, the less
CHECKED_S = 60.0  # how long --check simulates
CHECKED = {"answers": 4, "max_tokens": 256}
COLUMNS = (
    *("ablation", "throughput", "least", "most", "of all of it", "cost", "latency"),
    *("tokens/verification", "server verifies"),
)
CHECK_COLUMNS = (
    *(
        "ablation",
        "pair",
        "verifications/s simulated",
        "real server",
        "tokens/verification simulated",
    ),
    *("real server", "server verifies simulated", "real server", "late steps"),
)


@dataclass(frozen=True)
class Simulated:
    """A row of the table in a cell of the grid; ratios are to server-only of the same batch."""

    group: str
    cell: str
    pair: str
    task: str
    tokens_per_s: float
    tokens_per_verification: float
    verifying: float  # share of the time
    throughput_ratio: float
    latency_ratio: float  # of the mean time between tokens
    cost_ratio: float | None  # of tokens a dollar; None where the devices have no price


def main(options: argparse.Namespace) -> None:
    """Raises OSError if the file of --json cannot be written."""
    rows = [row for row in TABLE_1 if row.pair in options.pairs and row.task in options.tasks]
    found = []
    for cell in CELLS:
        if cell.group not in (BASE.group, *options.groups):
            continue
        for one in simulated(cell, rows, options.seed):
            found.append(one)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    print(json.dumps({"ablation": "simulated", **asdict(one)}), file=file)
        print(f"simulated {cell.group}: {cell.name}", file=sys.stderr)
    print(report(found))
    if options.check:
        print(check([row for row in rows if row.task == CHECKED_TASK], options))


def simulated(cell: Cell, rows: Sequence[Row], seed: int) -> Iterator[Simulated]:
    """The rows in a cell; in each the edges begin at other places of the text."""
    seconds = max(COUNTED_S / cell.batch, LEAST_S)
    for number, row in enumerate(rows):
        yield simulate(cell, row, seed, number * TOKENS // len(rows), seconds)


def simulate(cell: Cell, row: Row, seed: int, start: int, seconds: float) -> Simulated:
    """A row in a cell, whose texts begin at `start`; with the same arguments it is the same."""
    step, clients = accelerator(row, cell), cell.edges * cell.batch
    devices = [device(cell, row, number) for number in range(clients)]
    simulation = Simulation(
        *(step, devices, POLICIES[cell.credits](), cell.pipelined, seed),
        trip=trips([name(row)], Proactive(cell.proactive), start, cell.offers),
    )
    record = simulation.run(SETTLE_S + seconds, SETTLE_S)
    verdicts = sum(time_s > SETTLE_S for trip in record.trips for time_s, _ in trip.verdicts)
    tokens_per_s = record.tokens / seconds
    ratio = tokens_per_s / server_only_tokens_per_s(row, step, cell.batch)
    prices = read_prices(times()[row.pair].server_price, "rtx-4090")
    paid = 1 + clients * prices.edge / prices.server
    return Simulated(
        *(cell.group, cell.name, row.pair, row.task, tokens_per_s),
        tokens_per_verification=record.tokens / verdicts,
        verifying=record.busy_s / seconds,
        throughput_ratio=ratio,
        latency_ratio=cell.edges / ratio,  # so many clients for each that the other method has
        cost_ratio=ratio / paid if cell.devices == (RTX_4090,) else None,
    )


def accelerator(row: Row, cell: Cell) -> Accelerator:
    """A step takes as long as the verification of its trees; that of one tree at least."""
    _, *trees = step_points(row.pair.partition("/")[0])
    most_rows = cell.batch * (1 + NODES)
    return Accelerator(((1, trees[0][1]), *trees), cell.shared or cell.batch, most_rows)


def device(cell: Cell, row: Row, number: int) -> Device:
    """The edge of this number; the kinds of a cell take turns."""
    slowness = cell.devices[number % len(cell.devices)].slowness
    return Device(
        cell.rtt_ms * 1e-3,
        times()[row.pair].edge_pass_ms * slowness * 1e-3,
        jitter=cell.jitter,
        loss=cell.loss,
        max_nodes=NODES,
        max_passes=BEAM_LEN,
        user=str(number),
    )


def server_only_tokens_per_s(row: Row, step: Accelerator, batch: int) -> float:
    """Drafting on the server, for all in one batch, then one step with all trees."""
    pair = times()[row.pair]
    drafting_s = pair.depth * pair.server_pass_ms * 1e-3
    return batch * server_only_tokens(row) / (drafting_s + step.step_s(batch * (1 + NODES)))


def report(found: Sequence[Simulated]) -> str:
    """A line for each cell: means over its rows, and the least and the most throughput of them."""
    cells: dict[tuple[str, str], list[Simulated]] = {}
    for one in found:
        cells.setdefault((one.group, one.cell), []).append(one)
    all_of_it = fmean(one.throughput_ratio for one in cells[BASE.group, BASE.name])
    lines = [line(ones, all_of_it) for ones in cells.values()]
    heading = (
        "simulated, stand-in models at the paper's times: means of "
        f"{len(cells[BASE.group, BASE.name])} rows beside server-only of the same batch\n"
        f"(the paper, all rows: throughput {MEAN_THROUGHPUT_RATIO}, cost {MEAN_COST_RATIO}, "
        "inter-token latency -11.24 %)"
    )
    return f"{heading}\n{laid_out(COLUMNS, lines)}\n"


def line(ones: Sequence[Simulated], all_of_it: float) -> Sequence[object]:
    """A cell's, beside the throughput ratio of the setting that leaves nothing out."""
    ratios = [one.throughput_ratio for one in ones]
    costs = [one.cost_ratio for one in ones if one.cost_ratio is not None]
    return (
        f"{ones[0].group}: {ones[0].cell}",
        *(f"{ratio:.2f}" for ratio in (fmean(ratios), min(ratios), max(ratios))),
        f"{fmean(ratios) / all_of_it:.0%}",
        f"{fmean(costs):.2f}" if costs else "",
        f"{fmean(one.latency_ratio for one in ones) - 1:+.0%}",
        f"{fmean(one.tokens_per_verification for one in ones):.2f}",
        f"{fmean(one.verifying for one in ones):.0%}",
    )


def check(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Cells that the bench has a mode for, simulated and through real server, edges and wire."""
    lines, cores = list[Sequence[object]](), Cores.split()
    for cell in (cell for cell in CELLS if cell.mode):
        for row in rows:
            reckoned = simulate(cell, row, options.seed, 0, CHECKED_S)
            setting = Namespace(**CHECKED, rtt_ms=cell.rtt_ms)
            run = run_edges(row, times()[row.pair], cell.mode, setting, cores)
            real = figures(run, read_prices(times()[row.pair].server_price, "rtx-4090"))
            verifications = [
                one.tokens_per_s / one.tokens_per_verification for one in (reckoned, real)
            ]
            both = (
                *verifications,
                *(reckoned.tokens_per_verification, real.tokens_per_verification),
                *(reckoned.verifying, real.verifying),
            )
            late = late_share(run.steps, times()[row.pair].verify_ms)
            words = (*(f"{number:.2f}" for number in both), f"{late:.0%}")
            lines.append((f"{cell.group}: {cell.name}", row.pair, *words))
    heading = "the same stand-in models simulated, and with the real server, edges and wire"
    return f"{heading}\n{laid_out(CHECK_COLUMNS, lines)}\n"
