"""What an experiment has found: a table, claims of the paper beside it, lines for a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.bench.table import laid_out

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Claim:
    """What the paper says, or a goal of ours; what came out; if it disagrees, why."""

    said: str
    found: str
    agrees: bool
    why: str = ""

    def __str__(self) -> str:
        because = f" ({self.why})" if self.why and not self.agrees else ""
        return f"  {'agrees' if self.agrees else 'DIFFERS'}: {self.said}: {self.found}{because}"


@dataclass(frozen=True)
class Plot:
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    log_y: bool = True


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    claims: Sequence[Claim]
    plots: Mapping[str, Plot] = field(default_factory=dict)
    lost: int = 0  # data packets that ExpressPass lost

    def __str__(self) -> str:
        return "\n".join([self.title, laid_out(self.columns, self.rows), *map(str, self.claims)])


def nothing_lost(lost: int) -> Claim:
    """The paper's first claim, which every experiment puts to the test."""
    return Claim("no data is lost", f"{lost} packets lost", lost == 0)
