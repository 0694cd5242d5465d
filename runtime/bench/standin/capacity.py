"""Simulated: how many clients one server carries within a latency objective, by method.

Three methods over the same steps, whose cost by rows is the paper's (`paper.step_points`):

    plain        all requests in every step, a row each
    server-only  all draft on the server, in one batch, then all trees are verified in one step; of
                 a few sizes and depths of trees the best for each number of clients. A pass of the
                 draft takes the same time for any batch, which is in this method's favour
    specedge     the server's policies, which know the objective, and the edges' rules, drafting
                 ahead included; `specedge without offers` is the same with edges that only draft
                 when they are asked

The latency of a token is the mean over 64 tokens in a row, since drafts bring tokens in handfuls,
and of all such stretches of all clients the 99th percentile is taken. `gap_p99_ms` is the stricter
figure: tokens that come together share their wait, and every token counts for itself. Texts do not
end and prompts are not read; neither does memory limit anybody.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from statistics import fmean

from runtime.bench.figures import percentile
from runtime.bench.simulation import Accelerator, Device, Simulation
from runtime.bench.standin.agreement import TOKENS
from runtime.bench.standin.calibration import BEAMS, WIDTH, name
from runtime.bench.standin.gain import gain_at
from runtime.bench.standin.paper import NODES, TABLE_1, Row, step_points, times
from runtime.bench.standin.simulated import drafter, trips
from runtime.bench.table import laid_out
from runtime.edge.draft.speculation import TreeShape
from runtime.server.policy.credits import POLICIES

METHODS = ("plain", "server-only", "specedge")
NO_OFFERS = "specedge without offers"
STRETCH_TOKENS = 64
NOISE, JITTER = 0.02, 0.1  # of a step and of each way, as shares
PASSES = 7  # the most of an edge's draft, section 5.2
SIZES = (1, 2, 4, 8, 16, NODES)  # of the server-only method's trees
SETTLE_S, COUNTED_S, CROWD = 8.0, 20.0, 16  # fewer clients than a crowd are watched for longer
MOST_ROWS = 1 << 16  # of a step: no limit
FIRST, MOST_CLIENTS = 8, 512
GROWTH, FINE = 1.5, 48  # of clients from try to try; a capacity is found to 1/FINE of itself
COLUMNS = (
    "pair",
    "task",
    "p99 objective, ms",
    *METHODS,
    "of the others' best",
    "drafted",
    "mean ms",
)

Verdicts = Sequence[tuple[float, int]]  # seconds, and tokens that came then


@dataclass(frozen=True)
class Point:
    """One number of clients in one method; times in milliseconds."""

    clients: int
    p99_ms: float
    gap_p99_ms: float
    mean_ms: float
    tokens_per_s: float
    drafted: float  # share of the verdicts that followed a draft
    shape: str = ""  # the server-only method's nodes and passes


@dataclass(frozen=True)
class Carried:
    """The most clients that a method carries within an objective, 0 for none, as a line of JSON."""

    pair: str
    task: str
    method: str
    objective_ms: float
    rtt_ms: float
    clients: int
    point: Point | None  # with so many


def main(options: argparse.Namespace) -> None:
    """Raises OSError if the file of --json cannot be written."""
    rows = [row for row in TABLE_1 if row.pair in options.pairs and row.task in options.tasks]
    setting, found = Setting(options.rtt_ms * 1e-3, options.seed), []
    if options.clients:
        print(rates(setting, rows, options.clients))
        return
    for row in rows:
        for objective_ms in options.objective_ms:
            for one in setting.row(row, objective_ms):
                found.append(one)
                told = f"simulated: {one.method} {one.pair} {one.task}, {objective_ms:g} ms"
                print(f"{told}: {one.clients} clients", file=sys.stderr)
                if options.json:
                    with options.json.open("a", encoding="utf-8") as file:
                        print(json.dumps({"capacity": "simulated", **asdict(one)}), file=file)
    print(report(found, options))


def rates(setting: "Setting", rows: Sequence[Row], counts: Sequence[int]) -> str:
    """A line for each row and number of clients: tokens a second, and the p99 of a token."""
    lines: list[Sequence[object]] = []
    for row in rows:
        for clients in counts:
            points = [
                setting.point(row, method, clients, math.inf) for method in (*METHODS, NO_OFFERS)
            ]
            figures = (f"{point.tokens_per_s:.0f}, {point.p99_ms:.0f} ms" for point in points)
            lines.append((row.pair, row.task, clients, *figures))
    heading = (
        "simulated tokens a second of all clients, and p99 over 64 tokens in a row of the time per "
        f"token;\nstand-in models, the paper's cost of a step by rows, {setting.rtt_s * 1e3:g} ms "
        "round trip"
    )
    columns = ("pair", "task", "clients", *METHODS, NO_OFFERS)
    return f"{heading}\n{laid_out(columns, lines)}"


def report(found: Sequence[Carried], options: argparse.Namespace) -> str:
    """A line for each row and objective."""
    lines: list[Sequence[object]] = []
    for at in range(0, len(found), len(METHODS)):
        group = {one.method: one for one in found[at : at + len(METHODS)]}
        clients = {method: one.clients for method, one in group.items()}
        ours, point = group["specedge"], group["specedge"].point
        others = max(clients["plain"], clients["server-only"])
        words = (f"{point.drafted:.0%}", f"{point.mean_ms:.1f}") if point else ("", "")
        share = f"{ours.clients / others:.2f}" if others else ""
        lines.append(
            (ours.pair, ours.task, f"{ours.objective_ms:g}", *clients.values(), share, *words)
        )
    heading = (
        "simulated clients a server carries, stand-in models, the paper's cost of a step by rows, "
        f"{options.rtt_ms:g} ms round trip:\np99 over 64 tokens in a row of the time per token"
    )
    return f"{heading}\n{laid_out(COLUMNS, lines)}"


@dataclass(frozen=True)
class Setting:
    """What the options choose."""

    rtt_s: float
    seed: int

    def row(self, row: Row, objective_ms: float) -> Iterator[Carried]:
        """What each method carries; the search begins where the one before has ended."""
        start = FIRST
        for method in METHODS:
            point = partial(self.point, row, method, objective_s=objective_ms * 1e-3)
            best = most(partial(_within, point, objective_ms), start)
            start = max(start, best)
            about = (row.pair, row.task, method, objective_ms, self.rtt_s * 1e3)
            yield Carried(*about, best, point(best) if best else None)

    def point(self, row: Row, method: str, clients: int, objective_s: float) -> Point:
        """Simulate it; only the server of `specedge` knows the objective."""
        return _point(self, row, method, clients, objective_s if method == "specedge" else math.inf)

    def simulate(self, row: Row, method: str, clients: int, objective_s: float) -> Point:
        """As `point`, every time anew."""
        if method == "server-only":
            shapes = [
                TreeShape(nodes, BEAMS, depth, WIDTH)
                for nodes in SIZES
                for depth in range(1, times()[row.pair].depth + 1)
            ]
            found = (self._server_only(row, clients, shape) for shape in shapes)
            return min(found, key=lambda point: point.p99_ms)
        return self._served(row, method, clients, objective_s)

    def _served(self, row: Row, method: str, clients: int, objective_s: float) -> Point:
        """Through the server's policies; edges that never draft are decoded plainly."""
        accelerator = Accelerator(step_points(target(row)), 1 << 15, MOST_ROWS, NOISE)
        device = partial(Device, self.rtt_s, times()[row.pair].edge_pass_ms * 1e-3)
        most = 0 if method == "plain" else NODES
        devices = [
            device(jitter=JITTER, max_nodes=most, max_passes=PASSES, user=str(number))
            for number in range(clients)
        ]
        trip = trips([name(row)], offers=method != NO_OFFERS)
        credits = POLICIES["drr"]()
        simulation = Simulation(
            *(accelerator, devices, credits),
            seed=self.seed,
            trip=trip,
            objective_s=objective_s,
        )
        record = simulation.run(SETTLE_S + counted_s(clients), SETTLE_S)
        drafted = sum(map(len, record.trees_by_user.values()))
        return summary([trip.verdicts for trip in record.trips], drafted)

    def _server_only(self, row: Row, clients: int, shape: TreeShape) -> Point:
        """Rounds of drafts and one step for all."""
        dice, now_s = random.Random(self.seed), 0.0
        accelerator = Accelerator(step_points(target(row)), clients)
        draft_s = shape.max_beam_len * times()[row.pair].server_pass_ms * 1e-3
        step_s = accelerator.step_s(clients * (1 + shape.max_budget))
        places = [number * 787 % TOKENS for number in range(clients)]
        verdicts: list[list[tuple[float, int]]] = [[] for _ in range(clients)]
        while now_s < SETTLE_S + counted_s(clients):
            now_s += draft_s + step_s * dice.gauss(1, NOISE)
            for client, place in enumerate(places):
                gained = gain(name(row), place, shape)
                places[client] = (place + gained) % TOKENS
                verdicts[client].append((now_s, gained))
        words = f"{shape.max_budget} nodes, {shape.max_beam_len} passes"
        return summary(verdicts, sum(map(len, verdicts)), words)


@lru_cache(maxsize=1024)
def _point(setting: Setting, row: Row, method: str, clients: int, objective_s: float) -> Point:
    return setting.simulate(row, method, clients, objective_s)


def _within(point: Callable[[int], Point], objective_ms: float, clients: int) -> bool:
    return point(clients).p99_ms <= objective_ms


def most(fits: Callable[[int], bool], start: int) -> int:
    """The most clients that fit, to 1/FINE; 0 if one does not, MOST_CLIENTS if those do."""
    good, bad = 0, MOST_CLIENTS + 1
    clients = min(start, MOST_CLIENTS)
    while bad - good > max(good // FINE, 1):
        if fits(clients):
            good = clients
            wider = min(math.ceil(good * GROWTH), MOST_CLIENTS)
        else:
            bad = clients
            wider = int(bad / GROWTH)
        closed = good and bad <= MOST_CLIENTS
        clients = (good + bad) // 2 if closed else wider
        if clients in (good, bad) or not clients:
            break
    return good


def target(row: Row) -> str:
    """The target's name in `step_points`."""
    return row.pair.partition("/")[0]


def counted_s(clients: int) -> float:
    """Simulated seconds after everything has settled."""
    return COUNTED_S * max(1.0, CROWD / clients)


@lru_cache(maxsize=1 << 16)
def gain(row: str, place: int, shape: TreeShape) -> int:
    """Tokens of a verification of the stand-in's text there."""
    return gain_at(drafter(row), place, shape)


def summary(verdicts: Sequence[Verdicts], drafted: int, shape: str = "") -> Point:
    """The figures of one run, of what came after it had settled."""
    counted = [[one for one in trip if one[0] > SETTLE_S] for trip in verdicts]
    stretches = [mean_s for trip in counted for mean_s in stretch_means(trip)]
    gaps = [
        (now_s - before_s) / tokens
        for trip in counted
        for (before_s, _), (now_s, tokens) in pairwise(trip)
        for _ in range(tokens)
    ]
    tokens = sum(tokens for trip in counted for _, tokens in trip)
    return Point(
        len(verdicts),
        p99_ms=1e3 * percentile(stretches, 0.99) if stretches else float("inf"),
        gap_p99_ms=1e3 * percentile(gaps, 0.99) if gaps else float("inf"),
        mean_ms=1e3 * fmean(gaps) if gaps else float("inf"),
        tokens_per_s=tokens / counted_s(len(verdicts)),
        drafted=min(drafted / max(sum(map(len, counted)), 1), 1.0),
        shape=shape,
    )


def stretch_means(verdicts: Verdicts) -> Iterator[float]:
    """Seconds a token of every stretch of 64 tokens, or of so many more as came with the last."""
    end, tokens = 0, 0
    for start in range(len(verdicts)):
        while tokens < STRETCH_TOKENS:
            end += 1
            if end == len(verdicts):
                return
            tokens += verdicts[end][1]
        yield (verdicts[end][0] - verdicts[start][0]) / tokens
        tokens -= verdicts[start + 1][1]
