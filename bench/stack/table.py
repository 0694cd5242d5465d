"""What a part has found: rows, and claims and goals beside what came out."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.stack.load import Figures
from runtime.bench.table import laid_out

ABSTRACT = "NetKernel's abstract"


@dataclass(frozen=True)
class Claim:
    """What the paper says, or our goal; what came out; whether it holds, if that can be said."""

    said: str
    found: str
    holds: bool | None = None

    def __str__(self) -> str:
        word = {True: "holds", False: "MISSED", None: "beside"}[self.holds]
        return f"  {word}: {self.said}: {self.found}"


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    claims: Sequence[Claim]

    def __str__(self) -> str:
        return "\n".join([self.title, laid_out(self.columns, self.rows), *map(str, self.claims)])


@dataclass(frozen=True)
class Runs:
    """A run in each turn, of one of those that are compared."""

    turns: Sequence[Figures]

    def __getitem__(self, name: str) -> float:
        """The median of a figure."""
        return statistics.median(figures[name] for figures in self.turns)

    def over(self, other: "Runs", name: str) -> float:
        """A figure over another's of the same turn, the median: between turns a host may move."""
        pairs = zip(self.turns, other.turns, strict=True)
        return statistics.median(mine[name] / theirs[name] for mine, theirs in pairs)


@dataclass(frozen=True)
class Effort:
    """How long each run lasts, and how many there are of each."""

    seconds: float
    turns: int

    def in_turns(self, runs: Sequence[Callable[[], Figures]]) -> list[Runs]:
        """One run of each in every turn."""
        every = [[run() for run in runs] for _ in range(self.turns)]
        return [Runs(of_one) for of_one in zip(*every, strict=True)]
