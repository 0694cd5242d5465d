"""From the options of `python -m runtime.bench` to an evaluation, its table, JSON and plots."""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from runtime.bench.evaluation import Laboratory, make_cases, make_rows, run_all
from runtime.bench.figures import Prices
from runtime.bench.link import Conditions
from runtime.bench.prompts import BUILT_IN, Question, read_questions
from runtime.bench.report import print_report, to_json
from runtime.bench.runs import Setup, Shape
from runtime.console import Terminal, saying

PRICES = Path(__file__).with_name("prices.json")
QUICK_TOKENS, QUICK_REPEATS = 32, 2
# What the search for the baseline's tree tries.
BUDGETS, DEPTHS = (8, 16, 32), (2, 3, 4, 5, 6)
QUICK_BUDGETS, QUICK_DEPTHS = (8, 16), (2, 4)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if a text differed. Raises ValueError or OSError with a sentence."""
    if options.plots and find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib: pip install 'specedge[bench]'")
    console, progress = Terminal(soft_wrap=True), Terminal(stderr=True, style="dim")
    prices = read_prices(options.server_price, options.edge_price)
    setup, objective_ms = make_setup(options), options.objective_ms
    modes = dict.fromkeys(["plain", *options.modes])  # the plain texts judge the others
    rtts_s = [rtt_ms / 1e3 for rtt_ms in options.rtt_ms]
    with ExitStack() as stack:
        say = stack.enter_context(saying(progress))
        say("looking for the baseline's best tree")
        laboratory = Laboratory(setup, stack)
        shape = laboratory.search(search_shapes(options), progress.print)
        sweeps = (rtts_s, options.depths, options.replayed)
        cases = make_cases(laboratory.setup, list(modes), *sweeps)
        repeats = QUICK_REPEATS if options.quick else options.repeats
        runs = run_all(laboratory, cases, repeats, say)
    rows = make_rows(runs, prices)
    print_report(rows, setup, shape, prices, console, objective_ms)
    if options.json:
        figures = to_json(rows, setup, shape, prices, objective_ms)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.plots:
        from runtime.bench.plots import write_plots

        last = next((r[-1] for case, r in runs.items() if case.mode == "specedge"), None)
        for path in write_plots(options.plots, rows, last):
            progress.print(f"wrote {path}")
    return 1 if any(row.different for row in rows) else 0


def make_setup(options: argparse.Namespace) -> Setup:
    """What all runs share. Raises ValueError, and OSError for a file that cannot be read."""
    questions: Sequence[Question] = BUILT_IN
    if options.prompts:
        questions = read_questions(options.prompts, options.per_task, options.tasks)
    rate = options.mbps * 1e6 / 8
    setup = Setup(
        questions=tuple(question.text for question in questions),
        model=options.model,
        draft=options.draft,
        weights=options.weights,
        max_tokens=min(options.max_tokens, QUICK_TOKENS) if options.quick else options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        batch=options.batch,
        edges=options.edges or 2 * options.batch,
        draft_pass_s=options.draft_pass_ms / 1e3,
        verify_step_s=options.verify_ms / 1e3,
        shape=Shape(max_beam_len=options.max_beam_len),
        conditions=Conditions(0.0, rate, rate, options.jitter_ms / 1e3),
    )
    if options.objective_ms is not None and not options.objective_ms > 0:
        raise ValueError(f"--objective-ms must be above 0, got {options.objective_ms:g}")
    clients = max(setup.batch, setup.edges, *options.replayed)
    if clients > len(setup.questions):
        raise ValueError(
            f"{clients} clients cannot all be busy with {len(setup.questions)} prompts: "
            "give --prompts or more --per-task"
        )
    return setup


def search_shapes(options: argparse.Namespace) -> list[Shape]:
    """The baseline's trees to choose from; the paper searches the depth, at 32 nodes."""
    depths = QUICK_DEPTHS if options.quick else DEPTHS
    budgets: Sequence[int] = QUICK_BUDGETS if options.quick else BUDGETS
    if options.max_budget is not None:
        budgets = (options.max_budget,)
    return [Shape(max_budget=b, max_beam_len=d) for b, d in product(budgets, depths)]


def read_prices(server: str, edge: str) -> Prices:
    """Dollars per second by name. Raises ValueError that lists the names there are."""
    table = json.loads(PRICES.read_text(encoding="utf-8"))
    for name in (server, edge):
        if name not in table:
            raise ValueError(f"no price for {name!r}; there are {', '.join(table)}")
    server_s, edge_s = (table[name]["dollars_per_hour"] / 3600 for name in (server, edge))
    return Prices(server_s, edge_s, server, edge)
