"""How often one flow offers: its rate follows the share of its offers that were lost.

Knows no gate, no sessions and no clock.
Source: ExpressPass (arXiv:1610.04688), its credit feedback control.
"""

from dataclasses import dataclass

TARGET_LOSS, LEAST_GAIN, MOST_GAIN, GAIN_STEP = 0.125, 0.01, 0.5, 0.05  # of the paper
LEAST_SHARE = 1 / 256  # of the capacity, which no rate falls below


@dataclass
class Feedback:
    """Offers a second, at most `most_per_s`, the capacity.

    `gain` is how much of what is left to the capacity a rate rises by without loss.
    """

    per_s: float
    most_per_s: float
    gain: float = MOST_GAIN
    may_increase: bool = False

    def update(self, granted: float, lost: float, period_s: float) -> None:
        """So many offers were granted, and so many lost, in the last `period_s` seconds."""
        target = (1 - min(self.per_s / self.most_per_s, 1)) * TARGET_LOSS
        if lost > target * (lost + granted):
            self.per_s = min(self.per_s, granted / period_s * (1 + target))
            self.gain, self.may_increase = max(self.gain / 2, LEAST_GAIN), False
        else:
            if self.may_increase:
                self.gain = min(self.gain + GAIN_STEP, MOST_GAIN)
            self.may_increase = True
            self.per_s += self.gain * (self.most_per_s - self.per_s)
        self.per_s = max(self.per_s, LEAST_SHARE * self.most_per_s)
