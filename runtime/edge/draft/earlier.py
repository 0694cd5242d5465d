"""Texts that an edge has finished: those that come may repeat them.

They are kept in memory alone, and are those of one user. How often what followed there follows
again differs from user to user, so it is learned.
"""

from collections.abc import Mapping, Sequence

from runtime.edge.draft.suffixes import Suffixes

EXPECTED_TOKENS = 8.0  # that what is expected of a match before anything is known counts for


class Earlier:
    """The last `most_tokens` of finished texts; beyond, those of the older half are forgotten."""

    def __init__(self, most_tokens: int) -> None:
        self._half_tokens = most_tokens // 2
        self._newer, self._older = Suffixes(), Suffixes()

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def add(self, text: Sequence[int]) -> None:
        """Take in a text that has ended, or its end if it is longer than a half."""
        text = text[max(len(text) - self._half_tokens, 0) :]
        if len(self._newer) + len(text) > self._half_tokens:
            self._older, self._newer = self._newer, Suffixes()
        self._newer.extend(text)

    def followers(self, tail: Sequence[int]) -> list[tuple[int, int]]:
        """As `Suffixes.followers`."""
        return [*self._newer.followers(tail), *self._older.followers(tail)]


class Trust:
    """How likely what followed a match follows again, by the length of the match.

    Of what is expected before anything is known, by length; of other lengths nothing is told.
    """

    def __init__(self, expected: Mapping[int, float]) -> None:
        self._right = {length: EXPECTED_TOKENS * share for length, share in expected.items()}
        self._seen = dict.fromkeys(expected, EXPECTED_TOKENS)

    def of(self, length: int) -> float:
        """A probability, never 1."""
        return self._right[length] / (self._seen[length] + 1)

    def saw(self, length: int, right: bool) -> None:
        """Whether the target's token is one of those that followed."""
        self._right[length] += right
        self._seen[length] += 1
