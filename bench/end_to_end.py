"""The paper's evaluation, figure by figure: `python -m runtime.bench` with the options of each.

Each figure becomes a folder with the figures as JSON and as plots. The devices have the speeds that
the paper states for its 32B/1.7B pair; the models are whatever is given after `--`, by default the
embedded pair. Source: SpecEdge (arXiv:2505.17052), section 5.

    python -m bench.end_to_end --prompts specbench.jsonl --out results [--only figure-11] [-- ...]
"""

import argparse
import sys
from pathlib import Path

from runtime.arguments import Parser
from runtime.bench.__main__ import evaluate, parse_options
from runtime.bench.prompts import SHIPPED, TASKS

# Section 5: V = 94.2 ms, a pass of the draft 11 ms, 32 nodes, one tree a step, RTT 14.07 ms.
PAPER = ("--verify-ms", "94.2", "--draft-pass-ms", "11", "--max-budget", "32", "--batch", "1")
LINK = ("--rtt-ms", "14.07")
FIGURES = {
    **{
        f"table-1-{task}": (*LINK, "--tasks", task, "--modes", "server-only", "specedge")
        for task in TASKS
    },
    "figure-8": (*LINK, "--modes", "disaggregated", "no-pipeline", "specedge"),
    "figure-10": ("--rtt-ms", "15", "40", "50", "--modes", "specedge", "--depths", *"234567"),
    "figure-11": ("--rtt-ms", "15", "35", "50", "65", "--modes", "server-only", "specedge"),
    "ablations": (
        *LINK, "--temperature", "0.7",
        "--modes", "server-only", "no-proactive", "single-proactive", "no-coupling", "specedge",
    ),
}  # fmt: skip


def main() -> int:
    """Exit status 1 if any text differed from plain decoding, 2 if a figure could not be made."""
    parser = Parser(
        prog="python -m bench.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("more", nargs="*", help="after --: further options of runtime.bench")
    options = parser.parse_args()
    status = 0
    for name in options.only:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        files = ("--prompts", str(options.prompts), "--plots", str(folder))
        results = ("--json", str(folder / "runs.jsonl"))
        print(f"\n{name}", flush=True)
        more = [*PAPER, *FIGURES[name], *files, *results, *options.more]
        status = max(status, evaluate(parse_options(more)))
    return status


if __name__ == "__main__":
    sys.exit(main())
