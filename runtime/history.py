"""Which tokens a text has, and how often its answer has each: what penalties look at.

Grows with the text, so that nobody counts it anew. Knows no logits and no penalties.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence


class History:
    """Distinct tokens of a text in rising order, each with its count in the answer.

    tokens  array of int64
    counts  array of int32, one for each token; 0 where only the prompt has it
    """

    def __init__(self, prompt: Iterable[int], answer: Sequence[int]) -> None:
        """`answer` is what there is of it already."""
        counts = Counter(answer)
        self.tokens = array("q", sorted(counts.keys() | set(prompt)))
        self.counts = array("i", [counts[token] for token in self.tokens])

    def followed_by(self, tokens: Iterable[int]) -> "History":
        """Another one, whose answer goes on with these."""
        longer = History((), ())
        longer.tokens, longer.counts = self.tokens[:], self.counts[:]
        longer.extend(tokens)
        return longer

    def extend(self, tokens: Iterable[int]) -> None:
        """The answer goes on."""
        for token in tokens:
            place = bisect_left(self.tokens, token)
            if place == len(self.tokens) or self.tokens[place] != token:
                self.tokens.insert(place, token)
                self.counts.insert(place, 0)
            self.counts[place] += 1
