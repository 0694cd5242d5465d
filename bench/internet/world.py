"""Who the edges are, where, and when they ask: all that is assumed, in one place.

Nothing here is measured. Rates, texts and regions are chosen so that the day has a quiet night, a
busy evening, and replicas that are neither idle nor full.
"""

from dataclasses import dataclass

import numpy as np

DAY_S = 86_400.0
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Region:
    """Edges of one part of the world; their day is `ahead_h` hours ahead of the replicas'."""

    name: str
    share: float
    rtt_s: float
    ahead_h: float


REGIONS = (
    Region("near", 0.5, 0.02, 0.0),
    Region("over the ocean", 0.3, 0.09, -6.0),
    Region("other side", 0.2, 0.18, 8.0),
)
# an hour's sessions, of a mean hour's: few at 3, most at 15 to 21 o'clock
SWING, BUSIEST_H = 0.8, 18.0


@dataclass(frozen=True)
class World:
    """The numbers of one day. A session is a chat of some turns; a turn is a prompt and an answer.

    Times in seconds, texts in tokens.
    """

    edges: int = 1_000_000
    replicas: int = 200
    sessions_a_day: float = 2.0  # of an edge
    turns: float = 30.0  # of a session, geometric
    think_s: float = 40.0  # between an answer and the next prompt, exponential
    prompt_tokens: float = 48.0  # of a turn, geometric
    answer_tokens: float = 256.0  # geometric; the paper's answers, appendix A
    goes_on: float = 0.5  # chance that a session goes on with the edge's last chat
    most_context: int = 4096  # a chat that is longer begins anew
    kv_tokens: int = 600_000  # of a replica: a 14B model in 80 GB, keys and values of 8 bits
    page_tokens: int = 16
    most_active: int = 256  # answers at once on a replica; others wait
    fails_after_s: float = 5 * DAY_S  # a replica, on average
    down_s: float = 180.0  # after a failure, until it is ready
    upgraded_every_s: float = 300.0  # one replica after another is drained and started again
    upgrade_s: float = 120.0
    tick_s: float = 5.0

    def sessions_per_s(self, region: Region, time_s: float) -> float:
        """New sessions of a region's edges."""
        hour = (time_s / HOUR_S + region.ahead_h - BUSIEST_H) * 2 * np.pi / 24
        mean = self.edges * region.share * self.sessions_a_day / DAY_S
        return mean * (1 + SWING * float(np.cos(hour)))
