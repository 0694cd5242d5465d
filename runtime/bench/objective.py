"""How many clients each mode carried within a latency objective. Pure; reads rows, runs nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.bench.evaluation import Row


@dataclass(frozen=True)
class Carried:
    """The most clients with which a mode met the objective, of those tried; 0 if with none.

    Met by the mean of the time between tokens, and by its 99th percentile.
    """

    mode: str
    rtt_ms: float
    tried: tuple[int, ...]
    by_mean: int
    by_p99: int


def carried(rows: Iterable[Row], objective_ms: float) -> list[Carried]:
    """One entry for each mode and round trip; rows with a text that is not plain do not count."""
    groups: dict[tuple[str, float], dict[int, Row]] = {}
    for row in rows:
        if not row.different:
            groups.setdefault((row.case.label, row.case.rtt_ms), {})[row.case.clients] = row

    def most(tried: dict[int, Row], name: str) -> int:
        met = (n for n, row in tried.items() if getattr(row.median(), name) <= objective_ms)
        return max(met, default=0)

    return [
        Carried(
            mode,
            rtt_ms,
            tuple(sorted(tried)),
            by_mean=most(tried, "inter_token_ms"),
            by_p99=most(tried, "inter_token_p99_ms"),
        )
        for (mode, rtt_ms), tried in groups.items()
    ]
