"""Rows as a table for a person and as JSON for a program; numbers are only laid out here."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from runtime.bench.evaluation import Row, find
from runtime.bench.figures import Bound, bound
from runtime.bench.modes import SERVER_ONLY
from runtime.bench.objective import Carried, carried
from runtime.bench.results import Evaluation
from runtime.bench.runs import Setup
from runtime.bench.table import laid_out, show

LIBRARIES = ("torch",)
MOST_LATE = 0.02  # a share of a row's steps that may take longer than stated
SPEED = (
    "mode", "clients", "RTT ms", "tokens/s", "x", "inter-token ms", "p50", "p99", "first token ms",
    "p99", "ktokens/$", "x", "text",
)  # fmt: skip
WORK = (
    "mode", "clients", "RTT ms", "tokens/verification", "drafted", "nodes", "hits", "bytes/round",
    "verifying", "V ms", "D ms", "late",
)  # fmt: skip


def described(evaluation: Evaluation) -> str:
    """The conditions that every figure of a run hangs on, in one line."""
    setup, shape, prices = evaluation.setup, evaluation.shape, evaluation.prices
    return (
        f"{setup.draft} for {setup.model}, {setup.weights}, T = {setup.temperature:g}; "
        f"{len(setup.questions)} prompts, at most {setup.max_tokens} tokens each; "
        f"{setup.batch} tree(s) a step, {setup.edges} edges, at most {shape.max_budget} nodes; "
        f"{paced(setup)}; baseline drafts {shape.max_beam_len} passes; priced as "
        f"{prices.server_name} and {prices.edge_name}; "
        f"cores: server {sorted(setup.cores.server)}, edges {sorted(setup.cores.edges)}"
    )


def paced(setup: Setup) -> str:
    """How fast the devices are, where that is stated and not this machine's own speed."""
    stated = [
        f"{what} padded to {1e3 * seconds:g} ms"
        for what, seconds in (("draft passes", setup.draft_pass_s), ("steps", setup.verify_step_s))
        if seconds
    ]
    stretched = f", stretched {setup.stretch:.2f} times" if setup.stretch > 1 else ""
    return " and ".join(stated) + stretched or "devices of this machine's own speed"


def speed_cells(row: Row, base: Row | None) -> list[str]:
    """What clients and the one who pays see; ratios are to the baseline's row."""
    f = row.median()
    return [
        *_name(row),
        show(row.spread("tokens_per_s"), 1),
        show(row.ratio(base, "tokens_per_s"), 2) if base else "-",
        f"{f.inter_token_ms:.1f}",
        f"{f.inter_token_p50_ms:.1f}",
        f"{f.inter_token_p99_ms:.1f}",
        f"{f.first_token_ms:.0f}",
        f"{f.first_token_p99_ms:.0f}",
        f"{f.ktokens_per_dollar:.1f}",
        show(row.ratio(base, "ktokens_per_dollar"), 2) if base else "-",
        "plain" if not row.different else f"{row.different} ERRORS",
    ]


def work_cells(row: Row) -> list[str]:
    """What it comes from."""
    f = row.median()
    return [
        *_name(row),
        f"{f.tokens_per_verification:.2f}",
        f"{f.drafted:.0%}",
        f"{f.nodes_per_draft:.1f}",
        f"{f.proactive_hit_rate:.0%}",
        f"{f.bytes_per_round:.0f}" if f.bytes_per_round else "-",
        f"{f.verifying:.0%}",
        f"{f.verify_ms:.1f}",
        f"{f.draft_ms:.1f}",
        f"{row.late:.0%}",
    ]


def _name(row: Row) -> list[str]:
    case = row.case
    rtt = "-" if case.mode == SERVER_ONLY else f"{case.rtt_ms:g}"
    return [case.label, str(case.clients), rtt]


def reached(rows: Sequence[Row]) -> Bound | None:
    """SpecEdge against the baseline that drafts; None unless both were run."""
    base, ours = find(rows, SERVER_ONLY), find(rows, "specedge")
    return bound(base.median(), ours.median()) if base and ours else None


def layer_split_ms(rows: Sequence[Row]) -> dict[float, float]:
    """Simulated, by round trip: plain decoding that pays one round trip for each token."""
    plain = find(rows, "plain")
    if plain is None:
        return {}
    step_ms = plain.median().verify_ms
    return {row.case.rtt_ms: step_ms + row.case.rtt_ms for row in rows if row.case.rtt_ms}


def capacity(one: Carried, objective_ms: float) -> str:
    """One mode at the objective, as a sentence."""
    tried = ", ".join(map(str, one.tried))
    mode = f"{one.mode}, RTT {one.rtt_ms:g} ms" if one.rtt_ms else one.mode
    return (
        f"at most {objective_ms:g} ms between tokens: {mode}: {one.by_mean} client(s) by the mean, "
        f"{one.by_p99} by the p99 (tried: {tried})"
    )


def print_report(rows: Sequence[Row], evaluation: Evaluation, console: Console) -> None:
    """The tables, the clients within the objective, the bound and the simulated layer split."""
    objective_ms = evaluation.objective_ms
    for name, value in evaluation.machine.items():
        console.print(f"{name}: {value}")
    console.print(described(evaluation))
    base = find(rows, SERVER_ONLY)
    console.print()
    console.print(laid_out(SPEED, [speed_cells(row, base) for row in rows]))
    console.print()
    console.print(laid_out(WORK, [work_cells(row) for row in rows]))
    console.print()
    if any(row.late > MOST_LATE for row in rows):
        console.print("late: steps that took 5 % longer than stated; --stretch states longer times")
    if objective_ms is not None:
        for one in carried(rows, objective_ms):
            console.print(capacity(one, objective_ms))
    if (b := reached(rows)) is not None:
        console.print(
            f"bound: (1 + D/V) x acceptance gain = (1 + {b.draft_ms:.1f}/{b.verify_ms:.1f}) x "
            f"{b.acceptance_gain:.2f} = {b.bound:.2f}; reached {b.reached:.2f}, {b.share:.0%} of it"
        )
    for rtt_ms, latency_ms in layer_split_ms(rows).items():
        console.print(
            f"layer split, simulated, RTT {rtt_ms:g} ms: {latency_ms:.1f} ms a token "
            "(the measured plain step and one round trip)"
        )


def to_json(rows: Sequence[Row], evaluation: Evaluation) -> dict[str, Any]:
    """Everything the table shows, and each repetition's figures."""
    b, objective_ms = reached(rows), evaluation.objective_ms
    return {
        "setup": described(evaluation),
        "rows": [
            {
                "mode": row.case.mode,
                "clients": row.case.clients,
                "rtt_ms": row.case.rtt_ms,
                "depth": row.case.depth,
                "texts_not_plain": row.different,
                "late": row.late,
                "median": asdict(row.median()),
                "runs": [asdict(f) for f in row.figures],
            }
            for row in rows
        ],
        "bound": asdict(b) | {"bound": b.bound, "share": b.share} if b else None,
        "layer_split_simulated_ms": layer_split_ms(rows),
        "objective_ms": objective_ms,
        "clients_within_objective": [
            asdict(one) for one in (carried(rows, objective_ms) if objective_ms is not None else ())
        ],
    }
