"""When to send: whether one more pass of the draft model is worth its time.

Pure arithmetic over times that the caller measures; it knows no clock, no tree and no socket.
"""

import math
from dataclasses import dataclass

WEIGHT = 0.25  # of the newest measurement in an average
MORE_PASSES = 2  # that several passes bring as much as, each bringing less than the one before


@dataclass(frozen=True)
class Slot:
    """When the server can verify a draft; times count from the grant.

    Until free_s drafting costs nothing; infinite if a credit has still to come. For late_s more the
    server waits, and drafting costs its time; then a step begins without the draft. With free_s 0
    the server has nothing else to do: no other step follows, and that is as long as it may take.
    """

    free_s: float
    late_s: float

    def at(self, elapsed_s: float, step_s: float) -> "Slot":
        """This one, or the first of the steps after it that can still be met."""
        missed_s = elapsed_s - self.free_s - self.late_s
        if missed_s <= 0 or self.free_s == 0 or step_s <= 0:
            return self
        return Slot(self.free_s + math.ceil(missed_s / step_s) * step_s, 0.0)


@dataclass
class Pace:
    """What an edge has learned of its own speed and its server's; averages forget exponentially.

    All its requests learn together: the first draft of an answer is paced by the answers before.
    """

    pass_s: float = 0.0  # a pass of the draft model, waiting for other requests' passes included
    step_s: float = 0.0  # of the server, the last time
    round_s: float = 0.0  # from verdict to verdict of a request that the server decodes plainly
    wait_s: float | None = None  # from when the server can use a draft to the verdict

    def saw_pass(self, seconds: float) -> None:
        self.pass_s = _average(self.pass_s or None, seconds)

    def saw_step(self, seconds: float) -> None:
        self.step_s = seconds

    def saw_round(self, seconds: float) -> None:
        self.round_s = _average(self.round_s or None, seconds)

    def saw_wait(self, seconds: float) -> None:
        self.wait_s = _average(self.wait_s, seconds)

    def fits_ahead(self, waited_s: float) -> bool:
        """Whether a pass begun now would end before the verdict is expected.

        waited_s counts from when the server could use the draft. A pass cannot be interrupted, so
        one that is under way when the verdict comes takes its time from the next draft.
        """
        return self.wait_s is None or waited_s + self.pass_s <= self.wait_s

    def is_worth_a_pass(self, tokens: float, gain: float, elapsed_s: float, slot: Slot) -> bool:
        """Whether a pass raises this round's expected tokens per second.

        tokens is what the next verdict is expected to bring without the pass, and gain what the
        pass adds. Delay-adaptive draft length: arXiv:2606.20591.
        """
        if gain <= 0 or slot.free_s == math.inf:
            return gain > 0
        slot = slot.at(elapsed_s, self.step_s)
        useful_s, ends_s = max(elapsed_s, slot.free_s), elapsed_s + self.pass_s
        if ends_s <= useful_s:
            return True
        if ends_s > slot.free_s + slot.late_s:
            # It misses the step. Others fit before the next one, which begins so much later.
            ends_s = slot.free_s + self.step_s
            passes = (ends_s - elapsed_s) / self.pass_s
            if slot.free_s == 0 or passes < 1:
                return False
            gain *= min(passes, MORE_PASSES)
        wait_s = self.step_s if self.wait_s is None else self.wait_s
        return (tokens + gain) * (useful_s + wait_s) > tokens * (ends_s + wait_s)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
