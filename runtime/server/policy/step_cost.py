"""How long a verification step takes, by its rows; learnt from the steps that were run.

One running mean for each power of two of rows, made non-decreasing and joined by straight lines.
Rows of prompt chunks cost a fixed time each on top, since no logits are computed for them. Where
nothing was measured the curve is assumed flat below and to go on straight above: what looks cheap
is tried, in stages, and then it is known.
Source: isotonic regression by pooling adjacent violators (Ayer et al., 1955).
"""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from runtime.server.policy.estimators import GAIN, Mean

OUTLIER = 0.5  # a sample counts as at most this share off the mean
STALE_STEPS = 512  # after which what was measured is forgotten
STRETCH = 4  # a step of so many times the rows that were measured may be tried
TRUSTED = 3  # samples before a mean may call another one an outlier


class Bucket:
    """Steps whose rows have the same number of binary digits."""

    def __init__(self) -> None:
        self.rows, self.step_s = Mean(), Mean()
        self.seen = 0

    def observe(self, rows: int, step_s: float, now: int) -> None:
        """A step of this size was run, number `now` of all."""
        if self.step_s.count >= TRUSTED:
            most_s = OUTLIER * self.step_s.value
            step_s = min(max(step_s, self.step_s.value - most_s), self.step_s.value + most_s)
        self.rows.observe(rows)
        self.step_s.observe(step_s)
        self.seen = now


class StepCost:
    """Seconds of a step of so many rows."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}  # by rows.bit_length()
        self._steps = 0
        self._chunk_row_s = Mean()
        self._rows: list[float] = []
        self._times_s: list[float] = []
        self._foreseen_s: dict[float, float] = {}  # by rows, what was asked for since a step
        self.deviation_s = 0.0

    @property
    def known(self) -> bool:
        """Whether any step without a prompt in it has been measured."""
        return bool(self._rows)

    def step_s(self, rows: float, chunk_rows: int = 0) -> float:
        """Expected time of a step; 0 while nothing is known."""
        if (trees_s := self._foreseen_s.get(rows)) is None:
            trees_s = self._foreseen_s[rows] = self._trees_s(rows)
        return trees_s + chunk_rows * self._chunk_row_s.value if chunk_rows else trees_s

    def slopes(self, rows: float) -> list[tuple[float, float]]:
        """From `rows` on: (rows at the end of a piece, seconds that each row of it costs).

        The last piece ends at a few times the rows that were measured: a step of more is not tried.
        """
        knots = list(zip(self._rows, self._times_s, strict=True))
        pieces = [(knots[0][0], 0.0)] if knots else []
        for (start, start_s), (end, end_s) in pairwise(knots):
            pieces.append((end, (end_s - start_s) / (end - start)))
        last = pieces[-1][1] if pieces else 0.0
        pieces.append((STRETCH * knots[-1][0] if knots else 0.0, last))
        return [piece for piece in pieces if piece[0] > rows]

    def learn(self, steps: Iterable[tuple[int, float]]) -> None:
        """Steps of these tree rows took these seconds."""
        for rows, step_s in steps:
            self.observe(rows, 0, step_s)

    def observe(self, rows: int, chunk_rows: int, step_s: float) -> None:
        """A step of `rows` tree rows and `chunk_rows` prompt rows took `step_s`."""
        if chunk_rows:
            if self.known:
                self._chunk_row_s.observe(max(step_s - self._trees_s(rows), 0.0) / chunk_rows)
            return
        self._steps += 1
        bucket = self._buckets.setdefault(rows.bit_length(), Bucket())
        bucket.observe(rows, step_s, self._steps)
        self.deviation_s = bucket.step_s.deviation
        self._forget()
        self._join()

    def _forget(self) -> None:
        """What was measured long ago may be wrong; the fewest rows stay, for plain decoding."""
        for size, bucket in list(self._buckets.items()):
            if bucket.seen + STALE_STEPS < self._steps and size != min(self._buckets):
                del self._buckets[size]

    def _trees_s(self, rows: float) -> float:
        if not self._rows:
            return 0.0
        at = bisect_right(self._rows, rows)
        if at == 0 or len(self._rows) == 1:
            return self._times_s[0]
        left = min(at, len(self._rows) - 1) - 1
        start, start_s = self._rows[left], self._times_s[left]
        slope_s = (self._times_s[left + 1] - start_s) / (self._rows[left + 1] - start)
        return start_s + slope_s * (rows - start)

    def _join(self) -> None:
        """Pool neighbours until more rows never take less time."""
        pools: list[list[float]] = []  # seconds, weight, buckets
        buckets = [self._buckets[size] for size in sorted(self._buckets)]
        for mean_s in (bucket.step_s for bucket in buckets):
            pools.append([mean_s.value, min(mean_s.count, 1 / GAIN), 1])
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                value_s, weight, size = pools.pop()
                total = pools[-1][1] + weight
                pools[-1][0] = (pools[-1][0] * pools[-1][1] + value_s * weight) / total
                pools[-1][1:] = [total, pools[-1][2] + size]
        self._rows = [bucket.rows.value for bucket in buckets]
        self._foreseen_s.clear()
        self._times_s = [value_s for value_s, _, size in pools for _ in range(int(size))]
