"""A day of a million edges over two hundred replicas, simulated by the product's own objects.

    python -m bench.internet [--edges 1000000] [--replicas 200] [--hours 24] [--round-robin]
                             [--objective-ms 100] [--plot FILE.png] [--json]

The replicas' policy runs step by step at some numbers of answers at once, with the paper's cost of
a step by rows and a draft that agrees as the paper's does ("stand-in"). The front's router chooses
for every session and every move; the prefix cache of one replica is the product's, page by page.
What is assumed of edges and texts stands in bench/internet/world.py.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.harness import option_parser, report, whole_number
from bench.internet.day import Day, Kept
from bench.internet.prefixes import Found
from bench.internet.replica import ANSWERS, Curve, curve
from bench.internet.world import HOUR_S, World
from runtime.bench.attempt import attempt
from runtime.bench.command import read_prices
from runtime.bench.standin.paper import TABLE_1, Row
from runtime.bench.table import laid_out

PAIR, TASK = "14B/1.7B", "qa"  # the pair with room for many, and its lowest acceptance
SERVER, EDGE = "a100-80gb", "rtx-4090"  # in prices.json
OBJECTIVES_MS = (50.0, 75.0, 100.0, 200.0)


def main() -> None:
    options = _options()
    world = replace(World(), edges=options.edges, replicas=options.replicas)
    row = next(row for row in TABLE_1 if (row.pair, row.task) == (PAIR, TASK))
    ours = curve(row, "specedge", options.objective_ms * 1e-3, options.seed)
    day = Day(world, ours, options.seed, round_robin=options.round_robin)
    begun_s = time.monotonic()
    kept = day.run(options.hours * HOUR_S, _progress(begun_s))
    day.check()
    found = Found()
    for prefixes in day.prefixes:
        for name, count in vars(prefixes.counts).items():
            setattr(found, name, getattr(found, name) + count)
    rows = [*_figures(kept, ours, found, options.hours)]
    title = f"simulated, stand-in {PAIR} {TASK}: {options.hours:g} h of {world.edges:,} edges, "
    title += f"{world.replicas} replicas, {'round robin' if options.round_robin else 'the router'}"
    shown = [(name, f"{value:,.4g}", unit) for name, value, unit in rows]
    numbers = {name: value for name, value, _ in rows}
    report(title, ("figure", "value", "unit"), shown, numbers, options.json)
    if not options.json and options.costs:
        print(_costs(row, kept, options))
    if options.plot:
        from bench.internet.plot import draw

        draw(options.plot, kept, ours, title)


def _figures(kept: Kept, ours: Curve, found: Found, hours: float) -> list[tuple[str, float, str]]:
    counts = np.arange(len(kept.answers))
    by_answers = kept.answers * counts  # seconds of answers at each number of them
    drafted = by_answers * np.interp(counts, ANSWERS, ours.drafted)
    busy = np.interp(counts, ANSWERS, ours.busy) * (counts > 0)
    seconds = min(hours, 24) * HOUR_S
    rates = kept.edge_tokens / np.maximum(kept.edge_seconds, 1e-9)
    rates = rates[kept.edge_seconds > 60]  # who was answered for a minute in all
    return [
        ("sessions", kept.sessions, ""),
        ("answers", kept.answered, ""),
        ("tokens", kept.tokens.sum(), ""),
        ("failures and drains of replicas", kept.failures + kept.drains, ""),
        ("edges moved by them", kept.moved, ""),
        ("of these, in the middle of an answer", kept.cut, ""),
        ("answers at once of a replica, mean", by_answers.sum() / kept.answers.sum(), ""),
        ("the same in the busiest hour", kept.active.max() / HOUR_S / kept.world.replicas, ""),
        ("answers that wait for a place", kept.waited.sum() / seconds, "mean"),
        ("share of time in steps", (kept.answers * busy).sum() / kept.answers.sum(), ""),
        ("verdicts that followed a draft", drafted.sum() / by_answers.sum(), ""),
        ("age of a tree when verified, p99", 1e3 * ours.p99(ours.ages, drafted), "ms"),
        ("a token, over 64 in a row, p99", 1e3 * ours.p99(ours.paces, by_answers), "ms"),
        ("fullest replica over the mean, edges", kept.skew.max(), ""),
        ("Jain's index of edges' tokens/s", _jain(rates), ""),
        (
            "slowest 1 % of edges over the median",
            float(np.quantile(rates, 0.01) / np.median(rates)),
            "",
        ),
        ("prompt tokens that were said before", found.said_before / found.sought, ""),
        ("of these, found in the prefix cache", found.found / max(found.said_before, 1), ""),
        ("answers without pages for them", found.no_room, ""),
    ]


def _costs(row: Row, kept: Kept, options: argparse.Namespace) -> str:
    """Replicas that the busiest hour needs within an objective, and dollars of a million tokens."""
    prices = read_prices(SERVER, EDGE)
    peak, tokens = kept.tokens.max() / HOUR_S, kept.tokens.sum()
    answering_h = kept.active.sum() / HOUR_S
    plain = curve(row, "plain", math.inf, options.seed)
    lines: list[Sequence[object]] = []
    for objective_ms in OBJECTIVES_MS:
        for method in ("plain", "specedge"):
            is_plain = method == "plain"
            of = plain if is_plain else curve(row, method, objective_ms * 1e-3, options.seed)
            carried = of.carried(objective_ms * 1e-3, kept.world.most_active)
            if not carried:
                lines.append((f"{objective_ms:g}", method, 0, "", "", ""))
                continue
            needed = math.ceil(peak / of.tokens_per_s(carried))
            dollars = needed * prices.server * HOUR_S * options.hours / tokens * 1e6
            drafting = 0.0 if is_plain else answering_h * HOUR_S * prices.edge / tokens * 1e6
            lines.append(
                (
                    f"{objective_ms:g}",
                    method,
                    carried,
                    needed,
                    f"{dollars:.3f}",
                    f"{dollars + drafting:.3f}",
                )
            )
    columns = ("p99 ms a token", "method", "answers a replica", "replicas", "$ a million tokens")
    columns += ("with rented edges",)
    return f"\nsimulated, {SERVER} and {EDGE} at the paper's prices:\n{laid_out(columns, lines)}"


def _jain(values: np.ndarray) -> float:
    """1 where all are alike, 1/n where one has all."""
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def _progress(begun_s: float) -> Callable[[float], None]:
    def told(now_s: float) -> None:
        took_s = time.monotonic() - begun_s
        print(f"simulated: {now_s / HOUR_S:g} o'clock after {took_s:.0f} s", file=sys.stderr)

    return told


def _options() -> argparse.Namespace:
    parser = option_parser("bench.internet", __doc__)
    parser.add_argument("--edges", type=whole_number, default=World.edges)
    parser.add_argument("--replicas", type=whole_number, default=World.replicas)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--objective-ms", type=float, default=100.0)
    parser.add_argument("--round-robin", action="store_true")
    parser.add_argument("--no-costs", dest="costs", action="store_false")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (1 <= options.hours < math.inf and options.objective_ms > 0):
        parser.error("--hours must be 1 or more, and --objective-ms more than 0")
    if options.plot and find_spec("matplotlib") is None:
        parser.error("plots need matplotlib: pip install matplotlib")
    return options


if __name__ == "__main__":
    sys.exit(attempt("bench.internet", main))
