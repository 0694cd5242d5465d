"""How fast answers will come, with drafts and without: arithmetic over what was measured.

Without drafts the server goes on by itself, and the round trip does not matter. A round with a
draft is: draft, way there and back, verification; it gives the accepted tokens and one more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from runtime.edge.loop import Round


@dataclass(frozen=True)
class Drafted:
    """What a round with a draft takes and gives, on average."""

    tokens: float
    nodes: float
    draft_s: float  # from the turn to the sending of the tree: passes that were not made ahead
    verify_s: float  # what the server says of its step
    queue_s: float  # and of the time that the tree waited for it

    @classmethod
    def of(cls, rounds: Sequence[Round], pass_s: float) -> "Drafted":
        """Of rounds that all had a draft, with passes of the draft model of so many seconds."""
        return cls(
            tokens=fmean(len(round_.tokens) for round_ in rounds),
            nodes=fmean(len(round_.commit.sent) for round_ in rounds),
            draft_s=pass_s * fmean(round_.passes for round_ in rounds),
            verify_s=fmean(round_.verdict.verify_ms for round_ in rounds) / 1e3,
            queue_s=fmean(round_.verdict.queue_ms for round_ in rounds) / 1e3,
        )

    def round_s(self, rtt_s: float) -> float:
        return self.draft_s + rtt_s + self.queue_s + self.verify_s

    def longest_rtt_s(self, plain_per_s: float) -> float:
        """The round trip at which drafts are as fast as none; below 0 where they never are."""
        return self.tokens / plain_per_s - self.round_s(0.0)


@dataclass(frozen=True)
class Prediction:
    """Tokens a second of one answer.

    `drafted` is None where the server took hardly any draft. Of answers with drafts, the server
    decodes `plain_share` of the rounds by itself: it drafts no more than pays.
    """

    rtt_s: float
    plain_per_s: float
    drafted: Drafted | None
    plain_share: float = 1.0

    @property
    def drafted_per_s(self) -> float:
        """With drafts, as the server takes them."""
        if self.drafted is None:
            return self.plain_per_s
        plain, drafted = self.plain_share, 1 - self.plain_share
        tokens = plain + drafted * self.drafted.tokens
        return tokens / (plain / self.plain_per_s + drafted * self.drafted.round_s(self.rtt_s))
