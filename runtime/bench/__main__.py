"""Plain, server-only and split decoding compared on this machine.

Server and edges are processes on cores of their own; modes take turns; every text is compared with
plain decoding. --draft-pass-ms and --verify-ms state the speed of the devices, so that drafting and
verifying can have the proportion of other hardware; --stretch lengthens all of it by one factor
where this machine is too slow for that, which leaves every ratio as it was.

`prompts FILE` checks a file of prompts; prompts --help says which form it has, and whence it comes.
`table`, and its options, for Table 1 of the paper with stand-in models: table --help. `capacity`
for how many clients a server carries, simulated: capacity --help. `ablations` for what each part is
worth, simulated. `plot ROWS FOLDER` draws what --json of any of them has written.
"""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from runtime.arguments import Parser, appendable, number
from runtime.bench.attempt import attempt
from runtime.bench.modes import MODES, SERVER_ONLY
from runtime.bench.prompts import FORM, SHIPPED, described
from runtime.bench.standin import grid, paper
from runtime.config import WEIGHTS, version
from runtime.terminal import called, importing, run

NAMES = (SERVER_ONLY, *MODES)
HEADLINE = ("plain", "server-only", "disaggregated", "no-pipeline", "specedge")


def main() -> int:
    """Exit status: 0 when every text was plain, 1 when one differed, 2 when it could not run."""
    if sys.argv[1:2] == ["table"]:
        with importing():
            from runtime.bench.standin import table

        options = table_options(sys.argv[2:])
        return attempt("runtime.bench", lambda: table.main(options))
    if sys.argv[1:2] == ["capacity"]:
        with importing():
            from runtime.bench.standin import capacity

        return attempt("runtime.bench", lambda: capacity.main(capacity_options(sys.argv[2:])))
    if sys.argv[1:2] == ["ablations"]:
        with importing():
            from runtime.bench.standin import ablations

        return attempt("runtime.bench", lambda: ablations.main(ablations_options(sys.argv[2:])))
    if sys.argv[1:2] == ["plot"]:
        return attempt("runtime.bench", lambda: draw(plot_options(sys.argv[2:])))
    if sys.argv[1:2] == ["prompts"]:
        path = prompts_options(sys.argv[2:]).file
        return attempt("runtime.bench", lambda: print(described(path)))
    return evaluate(parse_options(sys.argv[1:]))


COUNT, TIME_MS = number(int, 1), number(float, 0)
MBPS = number(float, 1e-6, float("inf"))
SEED, NODES = number(int, 0, 2**63 - 1), number(int, 1, 255)


def evaluate(options: argparse.Namespace) -> int:
    """The exit status as of `main`; what keeps it from running is said in a sentence."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    with importing():
        from runtime.bench import command

    return attempt("runtime.bench", lambda: command.run(options))


def parse_options(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog=called("runtime.bench"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"specedge {version()}", help="print it, and end")
    add("--prompts", type=Path, metavar="FILE", default=SHIPPED, help="see prompts --help")
    add("--per-task", type=COUNT, default=2, help="prompts of each task of the file")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="of the file; all if not given")
    add("--modes", nargs="+", choices=NAMES, default=HEADLINE, metavar="MODE", help=" ".join(NAMES))
    add("--repeats", type=COUNT, help="how often all modes take their turns; 3, or 2 with --quick")
    add("--quick", action="store_true", help="less of all that is not given; a smaller search")
    add("--model", default="smollm2", help="target")
    add("--draft", default="smollm2-draft", help="draft")
    add("--drafter", default="", metavar="MODULE:NAME", help="what makes the edges' drafters")
    add("--credits", default="drr", metavar="POLICY", help="open, drr, or MODULE:NAME")
    add("--weights", default="stored", choices=WEIGHTS)
    add("--max-tokens", type=COUNT, help="longest answer; 64, or 32 with --quick")
    add("--temperature", type=number(float, 0, 100), default=0.0)
    add("--seed", type=SEED, default=1)
    add("--batch", type=COUNT, default=1, help="trees in one verification step")
    add("--edges", type=COUNT, help="edges; two for each tree of a step if not given")
    add("--max-budget", type=NODES, help="of a tree; what is best for server-only if not given")
    add("--max-beam-len", type=NODES, default=6, help="passes of an edge's draft, at most")
    _add_devices(parser)
    add("--depths", type=NODES, nargs="+", default=[], help="sweep of passes at each round trip")
    add("--replayed", type=COUNT, nargs="+", default=[], help="numbers of edges, drafts recorded")
    add("--objective-ms", type=float, metavar="MS", help="tell who stays within so long a token")
    add("--server-price", default="a100-40gb", help="name in runtime/bench/prices.json")
    add("--edge-price", default="rtx-4090", help="name in runtime/bench/prices.json")
    add("--json", type=appendable, metavar="FILE", help="write each run there, then all figures")
    add("--plots", type=Path, metavar="DIR", help="write PNG plots there (needs matplotlib)")
    options = parser.parse_args(argv)
    if options.max_tokens is None:
        options.max_tokens = 32 if options.quick else 64
    if options.repeats is None:
        options.repeats = 2 if options.quick else 3
    return options


JSON_FILE: dict[str, Any] = {
    "type": appendable,
    "metavar": "FILE",
    "help": "add each figure to this file, a line of JSON",
}


def _add_devices(parser: argparse.ArgumentParser) -> None:
    """Options that state how fast devices and link are."""
    add = parser.add_argument
    add("--draft-pass-ms", type=TIME_MS, default=0.0, help="a draft pass takes at least so long")
    add("--verify-ms", type=TIME_MS, default=0.0, help="a step takes at least so long")
    add("--stretch", action="store_true", help="lengthen stated times that this machine can't hold")
    add("--rtt-ms", type=TIME_MS, nargs="+", default=[0.0], help="round trips; several: a sweep")
    add("--mbps", type=MBPS, default=float("inf"), help="rate of the link in each direction")
    add("--jitter-ms", type=TIME_MS, default=0.0, help="most by which the link is late at random")


TABLE = """
Table 1 of the paper, row by row, with stand-in models: the real server, real edges and the real
wire, over an emulated link. The stand-ins' passes take the paper's times, and they agree as often
as the paper's models did on the server alone; nothing of the paper's SpecEdge columns goes in. Exit
status 1 where steps took longer than stated: this machine is too slow, or too busy.
"""


def table_options(argv: list[str]) -> argparse.Namespace:
    """Of `table`."""
    parser = Parser(prog=f"{called('runtime.bench')} table", description=TABLE)
    add, pairs = parser.add_argument, tuple(paper.times())
    add("--pairs", nargs="+", choices=pairs, default=pairs, metavar="PAIR", help=" ".join(pairs))
    tasks, modes = paper.TASKS, tuple(MODES)
    add("--tasks", nargs="+", choices=tasks, default=tasks, metavar="TASK", help=" ".join(tasks))
    add(
        "--modes",
        nargs="+",
        choices=modes,
        default=["specedge"],
        metavar="MODE",
        help=" ".join(modes),
    )
    add("--answers", type=COUNT, default=8, help="of each row; 8 are the whole text")
    add("--max-tokens", type=COUNT, default=paper.ANSWER_TOKENS, help="of an answer")
    add("--rtt-ms", type=TIME_MS, default=paper.RTT_MS, help="round trip of the link")
    add("--json", **JSON_FILE)
    options = parser.parse_args(argv)
    if options.answers < paper.EDGES or options.max_tokens < 2:
        parser.error(f"expected at least {paper.EDGES} answers of at least 2 tokens")
    return options


def prompts_options(argv: list[str]) -> argparse.Namespace:
    """Of `prompts`."""
    parser = Parser(
        prog=f"{called('runtime.bench')} prompts",
        description="Check each line of a file of prompts, and count them.",
        epilog=FORM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, nargs="?", default=SHIPPED, metavar="FILE")
    return parser.parse_args(argv)


CAPACITY = """
Simulated: how many clients one server carries within an objective for the 99th percentile of the
time per token: decoding plainly, drafting on the server, and with the server's own policies and
edges. Stand-in models as of `table`; a step costs by its rows what the paper's tables say.
"""


def capacity_options(argv: list[str]) -> argparse.Namespace:
    """Of `capacity`."""
    parser = Parser(prog=f"{called('runtime.bench')} capacity", description=CAPACITY)
    add, pairs, tasks = parser.add_argument, tuple(paper.times()), paper.TASKS
    add("--pairs", nargs="+", choices=pairs, default=pairs, metavar="PAIR", help=" ".join(pairs))
    add("--tasks", nargs="+", choices=tasks, default=["qa"], metavar="TASK", help=" ".join(tasks))
    add("--objective-ms", type=TIME_MS, nargs="+", default=[50.0, 100.0, 200.0], metavar="MS")
    add("--rtt-ms", type=TIME_MS, default=paper.RTT_MS, help="round trip of the links")
    add(
        "--seed", type=SEED, default=1, help="of all that is drawn; the same seed, the same figures"
    )
    rates = "tokens a second with so many clients, and no objective"
    add("--clients", type=COUNT, nargs="+", metavar="N", help=rates)
    add("--json", **JSON_FILE)
    options = parser.parse_args(argv)
    if min(options.clients or [1]) < 1:
        parser.error("a server has one client at least")
    if min(options.objective_ms) <= 0 or options.rtt_ms < 0:
        parser.error("an objective is more than 0 ms, and a round trip not less")
    return options


ABLATIONS = """
Simulated: what the parts of SpecEdge, the link and the edges' devices are each worth to the mean of
Table 1's rows, with the server's own policies and edges, and stand-in models as of `table`.
"""


def ablations_options(argv: list[str]) -> argparse.Namespace:
    """Of `ablations`."""
    parser = Parser(prog=f"{called('runtime.bench')} ablations", description=ABLATIONS)
    add, pairs, tasks = parser.add_argument, tuple(paper.times()), paper.TASKS
    add("--pairs", nargs="+", choices=pairs, default=pairs, metavar="PAIR", help=" ".join(pairs))
    add("--tasks", nargs="+", choices=tasks, default=tasks, metavar="TASK", help=" ".join(tasks))
    groups = ", ".join(grid.GROUPS)
    add("--groups", nargs="+", choices=grid.GROUPS, default=grid.GROUPS, metavar="G", help=groups)
    add(
        "--seed", type=SEED, default=1, help="of all that is drawn; the same seed, the same figures"
    )
    add("--json", **JSON_FILE)
    checked = f"then run {grid.CHECKED_TASK} in some cells through a real server and edges"
    add("--check", action="store_true", help=checked)
    options = parser.parse_args(argv)
    if options.check and grid.CHECKED_TASK not in options.tasks:
        parser.error(f"--check runs the task {grid.CHECKED_TASK}; add it to --tasks")
    return options


def plot_options(argv: list[str]) -> argparse.Namespace:
    """Of `plot`."""
    parser = Parser(
        prog=f"{called('runtime.bench')} plot",
        description="Draw what --json of the bench, of table, capacity or ablations writes.",
    )
    parser.add_argument("rows", type=Path, metavar="ROWS", help="the file of --json")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to put the pictures")
    return parser.parse_args(argv)


def draw(options: argparse.Namespace) -> None:
    """Raises ValueError in a sentence."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install matplotlib")
    from runtime.bench import command, results
    from runtime.bench.standin import ablations_plot, capacity_plot, plots

    rows, folder = options.rows, options.folder
    if results.is_evaluation(rows):
        command.redraw(rows, folder)
        return
    with rows.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    if '"capacity"' in first:
        written = capacity_plot.write(capacity_plot.read(rows), folder)
    elif '"ablation"' in first:
        written = ablations_plot.write(ablations_plot.read(rows), folder)
    else:
        written = plots.write(plots.read(rows), folder)
    for path in written:
        print(f"wrote {path}")


def program() -> NoReturn:
    """The whole program, as a console script calls it."""
    sys.exit(run("runtime.bench", main))


if __name__ == "__main__":
    program()
