"""What followed the end of a text where it stood before: in the text itself, and in earlier ones.

A place of a text is found again by the token before it and by the two before it, and counts for as
many tokens as are the same as ours before that. Earlier texts are kept in memory alone, and are
those of one user. How often what followed a match follows again differs from user to user, so it is
learned. Knows nothing of models and requests.
Source: suffix decoding (arXiv:2411.04975) and prompt-lookup decoding (Saxena, 2023).
"""

from collections.abc import Iterable, Mapping, Sequence

LONGEST = 16  # tokens of a match that are counted
EXPECTED_TOKENS = 8.0  # that what is expected of a match before anything is known counts for
MOST_PLACES = 8  # of those that stand behind the same tokens, the last ones


class Suffixes:
    """Texts one after another, and where each token and each pair of tokens stands in them."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], list[int]] = {}  # one token or two -> places behind

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on with the text."""
        for token in tokens:
            place = len(self._tokens)
            before = [(*self._tokens[-length:],) for length in (1, 2) if place >= length]
            self._tokens.append(token)  # first: another thread may find its place at once
            for words in before:
                self._after.setdefault(words, []).append(place)

    def cut(self, length: int) -> None:
        """Forget what stands behind the first so many tokens."""
        while len(self._tokens) > length:
            self._tokens.pop()
            for before in (1, 2):
                if len(self._tokens) >= before:
                    self._after[tuple(self._tokens[-before:])].pop()

    def followers(self, tail: Sequence[int]) -> list[tuple[int, int]]:
        """Where the end of `tail` stands: how much of it, and which token is behind; see above.

        tail: the last tokens of a text, `LONGEST` of them or as many as there are.
        """
        pair = self._after.get((*tail[-2:],), [])[-MOST_PLACES:]
        single = self._after.get((*tail[-1:],), [])[-MOST_PLACES:]
        # of a text of one token both are the same
        places = {*pair, *single} if tail else ()
        return [(self._matched(place, tail), self._tokens[place]) for place in places]

    def _matched(self, place: int, tail: Sequence[int]) -> int:
        """How many tokens before a place are the last ones of `tail`."""
        most = min(place, len(tail), LONGEST)
        for length in range(1, most):
            if self._tokens[place - length - 1] != tail[-length - 1]:
                return length
        return most


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
