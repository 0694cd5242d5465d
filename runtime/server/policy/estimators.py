"""Running estimates in a few numbers each: means, a rate, what a tree gains.

They forget, so they follow a machine or a text that changes. Know nothing of requests or clocks.
"""

import math

GAIN = 1 / 8  # weight of one new sample once there are enough
KEEP = 0.95  # weight that one step leaves to what came before, for rates


class Mean:
    """Mean and mean deviation of samples, the plain average until 1/gain of them have come.

    `prior` counts as one sample. Source: round-trip estimation after Jacobson (SIGCOMM 1988).
    """

    def __init__(self, prior: float | None = None, gain: float = GAIN):
        self.value = prior if prior is not None else 0.0
        self.deviation = 0.0
        self.count = 0 if prior is None else 1
        self._gain = gain

    def observe(self, sample: float) -> None:
        """Take one more sample into account."""
        self.count += 1
        gain, error = self._gain, sample - self.value
        if self.count * gain < 1:
            gain = 1 / self.count
        self.value += gain * error
        if self.count > 1:
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
    """How likely the k-th best node of a tree is to be accepted: chance ** (1 + log2 k).

    One number, `chance`, for the first node; each doubling of the rank multiplies by it again.
    On Spec-Bench with SmolLM2, 1.38 and 1.86 nodes were accepted of 8 and 32: the model gives 1.36
    and 2.03 at its prior. The server sees no ranks, only how many of n nodes were accepted, so
    `chance` follows that count through the model, by Newton steps of decreasing size.
    """

    PRIOR, LEAST, MOST = 0.5, 0.02, 0.95
    PRIOR_ROUNDS = 1  # what the prior weighs against observed rounds

    def __init__(self) -> None:
        self.chance = self.PRIOR
        self._rounds = self.PRIOR_ROUNDS

    def node(self, rank: float) -> float:
        """Chance that the node of this rank, 1 for the best, is accepted."""
        return math.pow(self.chance, 1 + math.log2(rank))

    def accepted(self, nodes: int) -> float:
        """Nodes accepted of the best `nodes`, expected."""
        return sum([math.pow(self.chance, exponent) for exponent in EXPONENTS[:nodes]])

    def best_below(self, chance: float) -> float:
        """The rank, as a real number, from which on a node's chance is below `chance` > 0."""
        if chance >= self.chance:
            return 1.0 if chance == self.chance else 0.0
        # Past any tree's size the exact rank does not matter, and 2 ** 64 never overflows.
        return math.pow(2, min(math.log(chance) / math.log(self.chance) - 1, 64))

    def observe(self, nodes: int, accepted: int) -> None:
        """A tree of `nodes` nodes had `accepted` of them accepted; one of none tells nothing."""
        if nodes == 0:
            return
        self._rounds += 1
        expected = slope = 0.0
        for exponent in EXPONENTS[:nodes]:
            power = math.pow(self.chance, exponent)
            expected += power
            slope += power * exponent / self.chance
        chance = self.chance + max(GAIN, 1 / self._rounds) * (accepted - expected) / slope
        self.chance = min(max(chance, self.LEAST), self.MOST)


# 1 + log2(rank) of every node that a tree can hold
EXPONENTS = [1 + math.log2(rank) for rank in range(1, 256)]
