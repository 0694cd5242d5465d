"""Whether a session drafts or decodes plainly, at a bounded price for finding out.

The next round may lose what is left of a slack of 3.1 tokens, 5 % of any 64, so its draft is made
small enough for that; gains fill the slack again, up to 3.1. When no draft fits the session decodes
plainly until 64 tokens have passed, twice as many each time that drafting gained nothing, and then
has its slack again. A round that can lose half a percent of a token at most, as where the others'
steps leave time to draft in, needs no slack. So no 64 tokens in a row take more than 5 % longer
than plain decoding, 5.5 % with such rounds, until drafting has proven faster beyond chance: from
then on losses are not counted, until it is not expected to be faster any more. Knows no clock and
no edge: rounds are told to it.
"""

import math

from runtime.server.estimators import Mean

WINDOW_TOKENS, MOST_PATIENCE_TOKENS = 64, 1024
SLACK_TOKENS = 3.1  # just under 5 % of a window: free rounds lose a little too
FREE_TOKENS = 0.005  # what a round may lose without slack
SURE, UNSURE = 1.25, 1.1  # times as fast as plain decoding, to stop counting and to count again


class Trial:
    """Times are in tokens: that of one round divided by that of one token of plain decoding."""

    def __init__(self) -> None:
        self.slack_tokens = SLACK_TOKENS
        self._sure = False
        self._speedup = Mean(gain=1 / 32)
        self._plain_tokens = 0
        self._patience_tokens = WINDOW_TOKENS

    def plain(self) -> None:
        """A token came by plain decoding."""
        self._plain_tokens += 1
        if self._plain_tokens >= self._patience_tokens:
            self.slack_tokens, self._plain_tokens = SLACK_TOKENS, 0
            self._patience_tokens = min(2 * self._patience_tokens, MOST_PATIENCE_TOKENS)

    def drafted(self, tokens: int, round_tokens: float) -> None:
        """A round with a draft gave `tokens` in the time of `round_tokens`."""
        self._speedup.observe(tokens / round_tokens)
        self._plain_tokens = 0
        left = self.slack_tokens + tokens - round_tokens
        self.slack_tokens = min(max(left, 0.0), SLACK_TOKENS)
        if left >= SLACK_TOKENS:
            self._patience_tokens = WINDOW_TOKENS

    def expect(self, speedup: float) -> None:
        """The next round with a draft is expected to be so many times as fast."""
        if self._sure and speedup < UNSURE:
            self._sure, self.slack_tokens = False, 0.0
        elif speedup >= UNSURE and self._speedup.at_least() >= SURE:
            self._sure = True

    @property
    def most_tokens(self) -> float:
        """What a round may take; it gives one token at least."""
        return math.inf if self._sure else 1 + max(self.slack_tokens, FREE_TOKENS)
