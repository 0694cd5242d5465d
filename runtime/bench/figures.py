"""Numbers out of records: throughput, latency, cost, and the bound. Pure; no clock, no model.

Throughput and utilisation are taken while every client was busy; prompts are inside the clock and
every step counts. Source of the metrics: SpecEdge (arXiv:2505.17052, section 5).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.bench.records import Answer, Run, Span

Spread = tuple[float, float, float]  # median, least, most


@dataclass(frozen=True)
class Prices:
    """Dollars per second of one server and of one edge."""

    server: float
    edge: float
    server_name: str = ""
    edge_name: str = ""


@dataclass(frozen=True)
class Figures:
    """One run in numbers; times in milliseconds, shares from 0 to 1."""

    tokens_per_s: float
    tokens_per_verification: float
    inter_token_ms: float
    inter_token_p50_ms: float
    inter_token_p99_ms: float
    first_token_ms: float
    first_token_p99_ms: float
    ktokens_per_dollar: float
    bytes_per_round: float
    drafted: float  # share of the verifications that had a draft
    nodes_per_draft: float
    verifying: float  # share of the time in which the target model runs
    verify_ms: float  # V: a step that reads no prompt
    draft_ms: float  # D: the draft model's time per step on the server, per round on an edge
    proactive_hit_rate: float


def figures(run: Run, prices: Prices) -> Figures:
    """Raises ValueError if the run has no time or no answers to count."""
    wall_s = run.end_s - run.start_s
    if wall_s <= 0 or not run.answers:
        raise ValueError(f"{run.mode}: nothing was measured in {wall_s:.3f} s")
    tokens = sum(tokens_until(a, run.end_s) for a in run.answers)
    latencies = [t for a in run.answers for t in inter_token_s(a)]
    firsts = [a.arrivals[0][0] - a.asked_s for a in run.answers]
    rounds = sum(a.verifications for a in run.answers)
    drafts = [nodes for step in run.steps for nodes in step.nodes.values()]
    plain_steps = [s.end_s - s.start_s for s in run.steps if s.verifies_only]
    proactive_rounds = sum(a.proactive_rounds for a in run.answers)
    return Figures(
        tokens_per_s=tokens / wall_s,
        tokens_per_verification=tokens_per_verification(run.answers),
        inter_token_ms=1e3 * mean(latencies),
        inter_token_p50_ms=1e3 * percentile(latencies, 0.5),
        inter_token_p99_ms=1e3 * percentile(latencies, 0.99),
        first_token_ms=1e3 * mean(firsts),
        first_token_p99_ms=1e3 * percentile(firsts, 0.99),
        ktokens_per_dollar=tokens / 1e3 / ((prices.server + prices.edge * run.edges) * wall_s),
        bytes_per_round=sum(a.wire_bytes for a in run.answers) / max(rounds, 1),
        drafted=mean([nodes > 0 for nodes in drafts]),
        nodes_per_draft=mean([nodes for nodes in drafts if nodes]),
        verifying=covered_s([(s.start_s, s.end_s) for s in run.steps], run) / wall_s,
        verify_ms=1e3 * mean(plain_steps),
        draft_ms=1e3 * draft_s(run) / max(len(run.steps) if run.drafting else rounds, 1),
        proactive_hit_rate=sum(a.proactive_hits for a in run.answers) / max(proactive_rounds, 1),
    )


def tokens_until(answer: Answer, end_s: float) -> int:
    """Tokens that had arrived by then."""
    return max((total for time_s, total in answer.arrivals if time_s <= end_s), default=0)


def tokens_per_verification(answers: Iterable[Answer]) -> float:
    """Tokens gained by a round; the first token of each answer follows no draft."""
    answers = list(answers)
    tokens = sum(len(a.ids) - 1 for a in answers)
    return tokens / max(sum(a.verifications - 1 for a in answers), 1)


def inter_token_s(answer: Answer) -> list[float]:
    """The latency of each token after the first arrival; k tokens at once share the wait."""
    latencies: list[float] = []
    for (before_s, had), (now_s, has) in zip(answer.arrivals, answer.arrivals[1:], strict=False):
        latencies += [(now_s - before_s) / (has - had)] * (has - had)
    return latencies


def draft_s(run: Run) -> float:
    """Time of the draft model: on the server, or on the edges."""
    spans = run.drafting or [span for answer in run.answers for span in answer.passes]
    return sum(end_s - start_s for start_s, end_s in spans)


def covered_s(spans: Iterable[Span], run: Run) -> float:
    """How much of the run the spans cover; they do not overlap."""
    return sum(max(0.0, min(e, run.end_s) - max(s, run.start_s)) for s, e in spans)


def spread(values: Sequence[float]) -> Spread:
    return statistics.median(values), min(values), max(values)


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class Bound:
    """How far moving the drafts off the server can go, and how far it went.

    A server that drafts spends D + V on a round, one that only verifies V: the throughputs differ
    by at most (1 + D/V) times the gain in tokens per verification.
    """

    draft_ms: float
    verify_ms: float
    acceptance_gain: float
    reached: float  # ratio of the throughputs

    @property
    def bound(self) -> float:
        return (1 + self.draft_ms / self.verify_ms) * self.acceptance_gain

    @property
    def share(self) -> float:
        return self.reached / self.bound


def bound(server_only: Figures, specedge: Figures) -> Bound:
    """D and V are those of the server that drafts."""
    return Bound(
        draft_ms=server_only.draft_ms,
        verify_ms=server_only.verify_ms,
        acceptance_gain=specedge.tokens_per_verification / server_only.tokens_per_verification,
        reached=specedge.tokens_per_s / server_only.tokens_per_s,
    )
