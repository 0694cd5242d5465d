"""From the options of `python -m runtime.bench` to an evaluation, its table, JSON and plots."""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from runtime.bench.evaluation import Case, Laboratory, make_cases, make_rows, run_all
from runtime.bench.figures import Prices
from runtime.bench.link import Conditions
from runtime.bench.machine import machine
from runtime.bench.prompts import read_questions
from runtime.bench.records import Run
from runtime.bench.report import LIBRARIES, described, print_report, to_json
from runtime.bench.results import Evaluation, add, begin, line_of, read
from runtime.bench.runs import Setup, Shape
from runtime.config import CREDITS, EdgeConfig, ServerConfig
from runtime.console import Terminal, saying
from runtime.edge.loading import make_drafter

PRICES = Path(__file__).with_name("prices.json")
# What the search for the baseline's tree tries.
BUDGETS, DEPTHS = (8, 16, 32), (2, 3, 4, 5, 6)
QUICK_BUDGETS, QUICK_DEPTHS = (8, 16), (2, 4)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if a text differed. Raises ValueError or OSError with a sentence."""
    if options.plots and find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib: pip install matplotlib")
    console, progress = Terminal(soft_wrap=True), Terminal(stderr=True, style="dim")
    prices = read_prices(options.server_price, options.edge_price)
    setup, objective_ms = make_setup(options), options.objective_ms
    modes = dict.fromkeys(["plain", *options.modes])  # the plain texts judge the others
    with ExitStack() as stack:
        say = stack.enter_context(saying(progress))
        say("looking for the baseline's best tree")
        laboratory, shapes = Laboratory(setup, stack), search_shapes(options)
        if options.stretch:
            laboratory.stretch(max(shapes, key=lambda shape: shape.max_budget))
        shape = laboratory.search(shapes, progress.print)
        setup = laboratory.setup
        evaluation = Evaluation(setup, shape, prices, objective_ms, machine(LIBRARIES))
        if options.json:
            begin(options.json, evaluation)

        def keep(case: Case, run: Run) -> None:
            if options.json:
                add(options.json, line_of(case, run))

        rtts_s = [rtt_ms / 1e3 * setup.stretch for rtt_ms in options.rtt_ms]
        cases = make_cases(setup, list(modes), rtts_s, options.depths, options.replayed)
        runs = run_all(laboratory, cases, options.repeats, say, keep)
    rows = make_rows(runs, prices)
    print_report(rows, evaluation, console)
    if options.json:
        add(options.json, {"figures": to_json(rows, evaluation)})
    if options.plots:
        from runtime.bench.plots import write_plots

        for path in write_plots(options.plots, rows, timeline(runs), described(evaluation)):
            progress.print(f"wrote {path}")
    return 1 if any(row.different for row in rows) else 0


def timeline(runs: Mapping[Case, Sequence[Run]]) -> Run | None:
    """The run whose second is drawn."""
    return next((some[-1] for case, some in runs.items() if case.mode == "specedge"), None)


def redraw(path: Path, folder: Path) -> None:
    """Tables and plots of what a file of --json holds so far. Raises ValueError or OSError."""
    from runtime.bench.plots import write_plots

    evaluation, runs = read(path)
    rows, console = make_rows(runs, evaluation.prices), Terminal(soft_wrap=True)
    print_report(rows, evaluation, console)
    for written in write_plots(folder, rows, timeline(runs), described(evaluation)):
        console.print(f"wrote {written}")


def make_setup(options: argparse.Namespace) -> Setup:
    """What all runs share. Raises ValueError, and OSError for a file that cannot be read."""
    questions = read_questions(options.prompts, options.per_task, options.tasks)
    rate = options.mbps * 1e6 / 8
    setup = Setup(
        questions=tuple(question.text for question in questions),
        model=options.model,
        draft=options.draft,
        drafter=options.drafter,
        credits=options.credits,
        weights=options.weights,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        batch=options.batch,
        edges=options.edges or 2 * options.batch,
        draft_pass_s=options.draft_pass_ms / 1e3,
        verify_step_s=options.verify_ms / 1e3,
        shape=Shape(max_beam_len=options.max_beam_len),
        conditions=Conditions(0.0, rate, rate, options.jitter_ms / 1e3),
    )
    check_named(setup)
    if options.stretch and not (setup.draft_pass_s or setup.verify_step_s):
        raise ValueError("--stretch lengthens what --verify-ms and --draft-pass-ms state: give one")
    if options.objective_ms is not None and not options.objective_ms > 0:
        raise ValueError(f"--objective-ms must be above 0, got {options.objective_ms:g}")
    clients = max(setup.batch, setup.edges, *options.replayed)
    if clients > len(setup.questions):
        raise ValueError(
            f"{clients} clients cannot all be busy with {len(setup.questions)} prompts: "
            "give --prompts or more --per-task"
        )
    return setup


def check_named(setup: Setup) -> None:
    """Raises ConfigError where --drafter or --credits names what makes none: told at the start,
    not by a worker once the baseline's tree was found."""
    if setup.drafter:
        make_drafter(EdgeConfig(draft=setup.draft, drafter=setup.drafter))
    if setup.credits not in CREDITS:
        from runtime.server.loop import credits_of  # it brings torch

        credits_of(ServerConfig(credits=setup.credits))


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
