"""Whether everybody decodes plainly, so that nearly all answers come as fast as was promised.

Drafts may give more tokens a second and yet be slower for some: whose text they do not foresee has
a token or two of each long step with all the others' trees, where plain steps would be short. Where
an operator states an objective, the time per token that 99 % of all stretches of 64 tokens shall
keep, it is watched, and while drafting breaks it and plain decoding would not, all requests decode
plainly. Drafting is tried again after as much time as 1024 tokens of the objective take, twice as
long each time that it fails, 8192 at the most: a try may make some stretches late, but fewer than
one in a hundred of all.

An example: 100 ms are promised, 60 requests run, and of 300 stretches with drafts 10 took longer; a
step of 60 rows takes 70 ms. For 102 s all decode plainly; then drafts are tried for as long.

What a request may lose by drafting (`trial.py`) is what the objective leaves it, if that is more.

Knows no clock and no request: times are arguments, in seconds.
"""

import math
from dataclasses import dataclass, field

STRETCH_TOKENS, LEAST_PATIENCE_TOKENS, MOST_PATIENCE_TOKENS = 64, 1024, 8192
RESERVE = 0.8  # of the slack, since what is foreseen of a round may be wrong
LATE_SHARE = 0.01  # of the stretches
KEEP = 0.995  # of what was counted, at each stretch: the last few hundred matter


@dataclass(slots=True)
class Stretch:
    """Tokens of one request that are being counted, since a time."""

    tokens: int = 0
    start_s: float | None = None  # None before the first verdict


@dataclass
class Objective:
    """The promise of `token_s` seconds a token, infinite for none, and how it is kept."""

    token_s: float = math.inf
    is_promised: bool = field(init=False)  # whether there is one
    plain_until_s: float = -math.inf
    _drafting_since_s: float = 0.0
    _patience_tokens: int = LEAST_PATIENCE_TOKENS
    _stretches: float = 0.0
    _late: float = 0.0

    def __post_init__(self) -> None:
        self.is_promised = not math.isinf(self.token_s)

    def verdict(self, stretch: Stretch, tokens: int, plain_s: float, now_s: float) -> None:
        """A verdict gave a request `tokens`; if all were plain, each would take `plain_s`."""
        if not self.is_promised:
            return
        if stretch.start_s is None or stretch.start_s < self._drafting_since_s:
            stretch.tokens, stretch.start_s = 0, now_s
            return
        stretch.tokens += tokens
        most_s = max(stretch.tokens, STRETCH_TOKENS) * self.token_s
        is_late = now_s - stretch.start_s > most_s
        if is_late or stretch.tokens >= STRETCH_TOKENS:
            stretch.tokens, stretch.start_s = 0, now_s
            self._count(is_late, plain_s, now_s)

    def slack_tokens(self, plain_s: float) -> float:
        """What 64 tokens may take longer than if all were plain, in tokens; 0 without a promise."""
        if not self.is_promised or plain_s <= 0:
            return 0.0
        return max(RESERVE * STRETCH_TOKENS * (self.token_s / plain_s - 1), 0.0)

    def is_plain(self, now_s: float) -> bool:
        """Whether all decode plainly now."""
        return now_s < self.plain_until_s

    def _count(self, is_late: bool, plain_s: float, now_s: float) -> None:
        self._stretches = KEEP * self._stretches + 1
        self._late = KEEP * self._late + is_late
        if self._late > LATE_SHARE * max(self._stretches, 1 / LATE_SHARE):
            if plain_s <= self.token_s:
                self._decode_plainly(now_s)
        elif now_s - self._drafting_since_s > self._patience_tokens * self.token_s:
            self._patience_tokens = LEAST_PATIENCE_TOKENS

    def _decode_plainly(self, now_s: float) -> None:
        self.plain_until_s = now_s + self._patience_tokens * self.token_s
        self._drafting_since_s = self.plain_until_s
        self._patience_tokens = min(2 * self._patience_tokens, MOST_PATIENCE_TOKENS)
        self._stretches = self._late = 0.0
