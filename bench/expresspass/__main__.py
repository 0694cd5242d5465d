"""python -m bench.expresspass: see the package's docstring."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import bench.expresspass
from bench.expresspass.completion import completion
from bench.expresspass.convergence import convergence
from bench.expresspass.incast import incast
from bench.expresspass.sharing import crowd, several
from bench.expresspass.table import Table
from bench.expresspass.waste import waste
from bench.expresspass.workloads import WORKLOADS
from bench.harness import option_parser, this_machine
from runtime.bench.attempt import attempt

EXPERIMENTS: dict[str, Callable[[], Table]] = {
    "convergence": convergence,
    "crowd": crowd,
    "fairness": several,
    "incast": incast,
    "waste": waste,
}
# Of 100,000 flows, the larger workloads would be billions of packets: so many of each are run.
SHARES = {"web server": 1.0, "cache follower": 1.0, "web search": 0.3, "data mining": 0.1}


def main() -> int:
    """Status 1 if data was lost under ExpressPass: then nothing else that is printed counts."""
    options = parse_options()
    if options.plots and find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib: pip install matplotlib")
    tables = []
    for table in chosen(options):
        tables.append(table)
        if not options.json:
            print(table, end="\n\n", flush=True)
    if options.json:
        print(json.dumps({"machine": this_machine(), "tables": [*map(numbers, tables)]}, indent=2))
    if options.plots:
        from bench.expresspass.plots import write_plots

        write_plots(options.plots, tables)
    return int(any(table.lost for table in tables))


def chosen(options: argparse.Namespace) -> Iterator[Table]:
    if not options.json:
        print("\n".join(f"{name}: {value}" for name, value in this_machine().items()))
    for name in options.only or [*EXPERIMENTS, "completion"]:
        if name in EXPERIMENTS:
            yield EXPERIMENTS[name]()
            continue
        for workload in WORKLOADS:
            if workload.name in options.workloads:
                yield completion(workload, round(options.flows * SHARES[workload.name]))


def numbers(table: Table) -> dict[str, object]:
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    claims = [vars(claim) for claim in table.claims]
    return {"name": table.name, "title": table.title, "rows": rows, "claims": claims}


def parse_options() -> argparse.Namespace:
    parser = option_parser("bench.expresspass", bench.expresspass.__doc__)
    names = [*EXPERIMENTS, "completion"]
    parser.add_argument("--only", nargs="+", choices=names, help="these experiments, not all")
    workloads = [workload.name for workload in WORKLOADS]
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads)
    parser.add_argument(
        "--flows",
        type=int,
        default=100_000,
        help="of the web server and the cache follower; web search has 0.3, data mining 0.1 of it",
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write PNG plots there")
    options = parser.parse_args()
    if options.flows < 100:
        parser.error("--flows must be 100 or more")
    return options


if __name__ == "__main__":
    sys.exit(attempt("bench.expresspass", main))
