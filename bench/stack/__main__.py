"""python -m bench.stack: see the package's docstring."""

import argparse
import json
import sys
from collections.abc import Callable

import bench.stack
from bench.harness import option_parser, this_machine
from bench.stack.hosts import connections, idle, sharing, sockets, users
from bench.stack.pairs import rings, round_trips, stream
from bench.stack.table import Effort, Table
from bench.stack.trees import trees
from runtime.bench.attempt import attempt

PARTS: dict[str, Callable[[Effort], Table]] = {
    "rings": rings,
    "round_trips": round_trips,
    "stream": stream,
    "sharing": sharing,
    "users": users,
    "sockets": sockets,
    "connections": connections,
    "idle": idle,
    "trees": trees,
}


def main() -> int:
    """Print a table of each part, or a line of JSON."""
    options = parse_options()
    effort = Effort(options.seconds, options.turns)
    machine = this_machine()
    if not options.json:
        print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    for name in options.only or PARTS:
        table = PARTS[name](effort)
        if options.json:
            print(json.dumps({"machine": machine, **numbers(table)}), flush=True)
        else:
            print(f"\n{table}", flush=True)
    return 0


def numbers(table: Table) -> dict[str, object]:
    """A table as JSON has it."""
    rows = [[*map(str, row)] for row in table.rows]
    claims = [vars(claim) for claim in table.claims]
    title = {"part": table.name, "title": table.title, "columns": [*table.columns]}
    return {**title, "rows": rows, "claims": claims}


def parse_options() -> argparse.Namespace:
    """Those of the command line."""
    parser = option_parser("bench.stack", bench.stack.__doc__)
    parser.add_argument("--only", nargs="+", choices=[*PARTS], help="these parts, not all")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a run, or about")
    parser.add_argument("--turns", type=int, default=5, help="runs of each, one after the other")
    options = parser.parse_args()
    if not 0 < options.seconds <= 60:
        parser.error("--seconds must be above 0 and at most 60")
    if not 1 <= options.turns <= 100:
        parser.error("--turns must be 1 to 100")
    return options


if __name__ == "__main__":
    sys.exit(attempt("bench.stack", main))
