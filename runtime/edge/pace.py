"""When to send: whether one more pass of the draft model is worth its time.

Pure arithmetic over times that the caller measures; it knows no clock, no tree and no socket.
"""

from dataclasses import dataclass

WEIGHT = 0.25  # of the newest measurement in an average


@dataclass
class Pace:
    """What an edge has learned of its own speed and its server's; averages forget exponentially.

    All its requests learn together: the first draft of an answer is paced by the answers before.
    """

    pass_s: float = 0.0  # a pass of the draft model, waiting for other requests' passes included
    wait_s: float | None = None  # from when the server can use a draft to the verdict

    def saw_pass(self, seconds: float) -> None:
        self.pass_s = _average(self.pass_s or None, seconds)

    def saw_wait(self, seconds: float) -> None:
        self.wait_s = _average(self.wait_s, seconds)

    def saw_step(self, seconds: float) -> None:
        """How long a step of the server takes: no wait is shorter, and none may be known yet."""
        if self.wait_s is None:
            self.wait_s = seconds

    def fits_ahead(self, waited_s: float) -> bool:
        """Whether a pass begun now would end before the verdict is expected.

        waited_s counts from when the server could use the draft. A pass cannot be interrupted, so
        one that is under way when the verdict comes takes its time from the next draft.
        """
        return self.wait_s is None or waited_s + self.pass_s <= self.wait_s

    def is_worth_a_pass(
        self, tokens: float, gain: float, elapsed_s: float, free_s: float, late_s: float
    ) -> bool:
        """Whether a pass raises this round's expected tokens per second.

        tokens is what the next verdict is expected to bring without the pass, and gain what the
        pass adds. Until free_s after the grant drafting costs nothing; `inf` is a grant still to
        come. For late_s more the server waits, and drafting costs its time; then a step starts
        without the draft, and a whole step is lost. Delay-adaptive draft length: arXiv:2606.20591.
        """
        ends_s = elapsed_s + self.pass_s
        if gain <= 0 or ends_s <= free_s:
            return gain > 0
        if ends_s > free_s + late_s:
            return False
        assert self.wait_s is not None, "a verdict granted this draft, and told of its step"
        useful_s = max(elapsed_s, free_s)
        round_s = useful_s + self.wait_s
        return (tokens + gain) * round_s > tokens * (round_s + ends_s - useful_s)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
