"""Whether a request drafts or decodes plainly, at a bounded price for finding out.

Nobody knows beforehand whether drafting pays for a text: it is tried, and trying may cost time. The
promise is that no 64 tokens in a row take more than 5 % longer than plain decoding would (5.5 %
with the rounds that are free, below), however bad the drafts are.

Times are counted in tokens of plain decoding. 5 % of 64 tokens are 3.2; a request may lose a little
less, its **slack** of 3.1. An example:

    slack   round                             what it gave        slack after
    3.1     takes the time of 2.5 tokens      1 token             3.1 + 1 - 2.5 = 1.6
    1.6     takes 2.5 again (1 + 1.6 = 2.6    4 tokens            1.6 + 4 - 2.5 = 3.1
            is the most that it may)
    0.4     none of 1.4 or less can be made   64 tokens of plain  3.1 again, to try anew;
            of a draft, so plain decoding     decoding follow     128 tokens the next time, ...

So the next round may lose what is left of the slack, and gains fill it again, up to where it was.
The wait until the next try doubles each time that drafting gained nothing, and is 64 again once it
does. A round that can lose half a percent of a token at most is free: it needs no slack. Such are
the rounds of an edge that drafts while the steps of others run anyway. Once drafting has proven
faster beyond chance (three standard errors above 1.4 times, in eight rounds or more), losses are
not counted any more, until it is not expected to be faster.

An edge that looks words up often has nothing to send, and the way there and back is lost. Until
drafting has proven faster, such a round is followed by so many of plain decoding that they all
together take 3 % longer: after one that took the time of 1.3 tokens, by nine.

Knows no clock and no edge: rounds are told to it.
"""

import math

from runtime.server.policy.estimators import Mean

WINDOW_TOKENS, MOST_PATIENCE_TOKENS = 64, 1024
SLACK_TOKENS = 3.1  # just under 5 % of a window: free rounds lose a little too
EMPTY_SHARE = 0.03  # of the time of a round without a draft and of the plain tokens behind it
FREE_TOKENS = 0.005  # what a round may lose without slack
SURE, UNSURE = 1.4, 1.1  # times as fast as plain decoding, to stop counting and to count again
SURE_ROUNDS = 8  # texts repeat themselves in runs: of fewer rounds the deviation says little


class Trial:
    """Times are in tokens: that of one round divided by that of one token of plain decoding."""

    __slots__ = (
        *("slack_tokens", "_full_tokens", "_sure", "_speedup"),
        *("_plain_tokens", "_patience_tokens", "_pause_tokens"),
    )

    def __init__(self) -> None:
        self.slack_tokens = self._full_tokens = SLACK_TOKENS
        self._sure = False
        self._speedup = Mean(gain=1 / 32)
        self._plain_tokens = 0
        self._patience_tokens = WINDOW_TOKENS
        self._pause_tokens = 0  # to be decoded plainly before the edge is asked again

    def allow(self, tokens: float) -> None:
        """A window may take so many tokens longer, where that is more than without being told."""
        more = max(tokens, SLACK_TOKENS) - self._full_tokens
        self._full_tokens += more
        self.slack_tokens = max(self.slack_tokens + more, 0.0)

    def plain(self) -> bool:
        """A token came by plain decoding; whether drafting is to be tried anew."""
        self._plain_tokens += 1
        self._pause_tokens = max(self._pause_tokens - 1, 0)
        if self._plain_tokens < self._patience_tokens:
            return False
        self.slack_tokens, self._plain_tokens = self._full_tokens, 0
        self._patience_tokens = min(2 * self._patience_tokens, MOST_PATIENCE_TOKENS)
        return True

    def drafted(self, tokens: int, round_tokens: float) -> None:
        """A round with a draft gave `tokens` in the time of `round_tokens`."""
        self._speedup.observe(tokens / round_tokens)
        self._plain_tokens = 0
        left = self.slack_tokens + tokens - round_tokens
        self.slack_tokens = min(max(left, 0.0), self._full_tokens)
        if left >= self._full_tokens:
            self._patience_tokens = WINDOW_TOKENS

    def nothing_drafted(self, round_tokens: float) -> None:
        """A round took the time of `round_tokens` and gave one: the edge had nothing to send."""
        self.drafted(1, round_tokens)
        if not self._sure:
            tokens = int((round_tokens - 1) / EMPTY_SHARE)  # the round's own among them
            self._pause_tokens = min(max(tokens - 1, 0), WINDOW_TOKENS)

    def expect(self, speedup: float) -> None:
        """The next round with a draft is expected to be so many times as fast."""
        if self._sure and speedup < UNSURE:
            self._sure, self.slack_tokens = False, 0.0
        elif speedup >= UNSURE and self._proven_faster:
            self._sure = True

    @property
    def _proven_faster(self) -> bool:
        return self._speedup.count >= SURE_ROUNDS and self._speedup.at_least() >= SURE

    @property
    def most_tokens(self) -> float:
        """What a round may take; it gives one token at least. 0 where none is to be made."""
        return 0.0 if self._pause_tokens else self.most_risked_tokens

    @property
    def most_risked_tokens(self) -> float:
        """The same for a round that asks the edge for nothing, with what it has sent by itself."""
        return math.inf if self._sure else 1 + max(self.slack_tokens, FREE_TOKENS)
