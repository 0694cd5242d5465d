"""Running estimates in a few numbers each: means, a rate, what a tree gains.

They forget, so they follow a machine or a text that changes. Know nothing of requests or clocks.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import mul, neg

GAIN = 1 / 8  # weight of one new sample once there are enough
KEEP = 0.95  # weight that one step leaves to what came before, for rates


class Mean:
    """Mean and mean deviation of samples, the plain average until 1/gain of them have come.

    `prior` counts as one sample. Source: round-trip estimation after Jacobson (SIGCOMM 1988).
    """

    __slots__ = ("_gain", "count", "deviation", "value")  # an edge has ten of them

    def __init__(self, prior: float | None = None, gain: float = GAIN):
        self.value = prior if prior is not None else 0.0
        self.deviation = 0.0
        self.count = 0 if prior is None else 1
        self._gain = gain

    def observe(self, sample: float) -> None:
        """Take one more sample into account."""
        self.count = count = self.count + 1
        gain, error = self._gain, sample - self.value
        if count * gain < 1:
            gain = 1 / count
        self.value += gain * error
        if count > 1:
            self.deviation += gain * (abs(error) - self.deviation)

    def at_least(self) -> float:
        """A lower bound of the mean, three standard errors below; minus infinity of one sample."""
        if self.count < 2:
            return -math.inf
        return self.value - 3 * self.deviation * math.sqrt(max(self._gain, 1 / self.count))


class Rate:
    """Events per second over the last couple of dozen intervals."""

    def __init__(self) -> None:
        self._events, self._elapsed_s = 0.0, 0.0

    def observe(self, events: float, elapsed_s: float) -> None:
        """`events` happened in the `elapsed_s` seconds since the last call."""
        self._events = KEEP * self._events + events
        self._elapsed_s = KEEP * self._elapsed_s + elapsed_s

    @property
    def per_s(self) -> float:
        """0 until time has passed."""
        return self._events / self._elapsed_s if self._elapsed_s > 0 else 0.0


class Acceptance:
    """How likely the k-th best node of a tree is to be accepted, by octaves of k: 1, 2, 3-4, 5-8.

    Each octave has a running mean of what was accepted of those of its nodes that were sent, and no
    octave is better than the one before it. One of which nothing is known yet is to the one before
    as in `prior ** (1 + log2 k)`: on Spec-Bench with SmolLM2, 1.38 and 1.86 nodes were accepted of
    8 and 32, and that says 1.36 and 2.03 at 0.5.
    """

    PRIOR, PRIOR_ROUNDS = 0.5, 2  # and the observed rounds that it weighs as much as
    OCTAVE_GAIN, FORGET = 1 / 24, 1 / 64  # FORGET: of what was not sent
    __slots__ = ("_chances", "_counts", "_means", "_prior", "_sums")

    def __init__(self, prior: float = PRIOR) -> None:
        self._prior = prior
        # of the octaves that were sent, which are the first ones
        self._means: list[float] = []
        self._counts: list[int] = []
        self._settle()

    def node(self, rank: int) -> float:
        """Chance that the node of this rank, 1 for the best, is accepted."""
        return self._chances[(rank - 1).bit_length()]

    def accepted(self, nodes: int) -> float:
        """Nodes accepted of the best `nodes`, expected."""
        octave = max(nodes - 1, 0).bit_length()
        before = OCTAVES[octave][0] - 1
        return self._sums[octave] + (nodes - before) * self._chances[octave] if nodes else 0.0

    def best_below(self, chance: float) -> float:
        """How many of the best nodes have at least this chance > 0; infinite if all have."""
        worse = bisect_right(self._chances, -chance, key=neg)
        return OCTAVES[worse][0] - 1 if worse < len(OCTAVES) else math.inf

    def observe(self, nodes: int, ranks: Sequence[int]) -> None:
        """Of a tree of `nodes` nodes those of these ranks were accepted; none tells nothing."""
        if nodes == 0:
            return
        means, counts, chances = self._means, self._counts, self._chances
        sent = (nodes - 1).bit_length() + 1
        if sent > len(means):
            counts += [0] * (sent - len(means))
            means += chances[len(means) : sent]
        hits = [0] * sent
        for rank in ranks:
            hits[(rank - 1).bit_length()] += 1
        left, least_gain = nodes, self.OCTAVE_GAIN
        for octave, hit in enumerate(hits):
            counts[octave] = count = counts[octave] + 1
            gain, size = 1 / (self.PRIOR_ROUNDS + count), SIZES[octave]
            if gain < least_gain:
                gain = least_gain
            means[octave] += gain * (hit / (size if size < left else left) - means[octave])
            left -= size
        for octave in range(sent, len(means)):
            guess = self._prior * chances[octave - 1]
            means[octave] += self.FORGET * (guess - means[octave])
        self._settle()

    def _settle(self) -> None:
        """Make the chances of the means, falling from octave to octave, and their sums."""
        chances: list[float] = []
        chance = 1.0
        for mean in self._means:
            chance = mean if mean < chance else chance
            chances.append(chance)
            chance = chance if chance > LEAST else LEAST
        for _ in range(len(chances), len(SIZES)):
            chance *= self._prior
            chances.append(chance)
            chance = chance if chance > LEAST else LEAST
        self._chances = chances
        self._sums = [0.0, *accumulate(map(mul, chances, SIZES))]  # over all octaves before each


LEAST = 1e-3  # chance of a node, to guess those after it from
# the first and the last rank of each octave, up to those of the largest tree
OCTAVES = [((1 << octave >> 1) + 1, 1 << octave) for octave in range(9)]
SIZES = [last - first + 1 for first, last in OCTAVES]
