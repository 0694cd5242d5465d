"""Prompt lookup: what followed the last tokens when they stood in the text before.

Answers often repeat names, numbers and phrases of the prompt, which a small draft model cannot
know; looking them up costs next to nothing. Pure Python over token ids.
Source: prompt-lookup decoding (Saxena, 2023), here as a distribution mixed into the draft's own.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

# How far a match of this length is trusted against the draft model: fitted on text that the
# embedded target wrote, see runtime/embedded/README.md. The result depends on them only weakly.
WEIGHTS = {3: 0.5, 2: 0.2, 1: 0.05}
LONGEST = max(WEIGHTS)


class SuffixIndex:
    """Followers of every n-gram of one text, for the lengths of `WEIGHTS`."""

    def __init__(self) -> None:
        self._new: list[int] = []  # tokens that are not indexed yet
        self._followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self._tail: tuple[int, ...] = ()

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text; they are indexed when they are first looked for."""
        self._new += tokens

    def _catch_up(self) -> None:
        new, self._new = self._new, []
        for token in new:
            for length in range(1, len(self._tail) + 1):
                self._followers[self._tail[-length:]][token] += 1
            self._tail = (*self._tail, token)[-LONGEST:]

    def next_tokens(self, path: Sequence[int]) -> dict[int, float]:
        """Token -> share of the mixture, after the text and then `path`; empty if nothing fits.

        The longest n-gram that occurred before decides; its shares add up to its weight.
        """
        self._catch_up()
        tail = (*self._tail, *path)[-LONGEST:]
        for length in range(len(tail), 0, -1):
            if followers := self._followers.get(tail[-length:]):
                total = followers.total()
                return {token: WEIGHTS[length] * n / total for token, n in followers.items()}
        return {}
