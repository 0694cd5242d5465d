"""How likely what stood behind the same words before comes again, in a text or in earlier ones.

Answers often repeat names, numbers and phrases of the prompt, which a small draft model cannot
know, and sometimes what was answered before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.edge.draft.suffixes import Earlier, Suffixes, Trust

# How far a match of this length, or of the longest or more, is trusted against the draft model:
# fitted on text that the embedded target wrote, see runtime/embedded/README.md.
WEIGHTS = {1: 0.1, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.65, 6: 0.7, 7: 0.75, 8: 0.85}
LONGEST = max(WEIGHTS)
# The same of a match in earlier texts, before it is known how often these come again: 0.3 of it
# gave more than 0.5, and 1 less than none, over answers to prompts of 14 kinds.
EARLIER_WEIGHTS = {length: 0.3 * weight for length, weight in WEIGHTS.items() if length > 1}


@dataclass
class Recalled:
    """Earlier texts beside a draft model."""

    texts: Earlier
    trust: Trust = field(default_factory=lambda: Trust(EARLIER_WEIGHTS))

    def learn(self, own: Suffixes, tail: Sequence[int], token: int) -> None:
        """The target says that this token follows `tail`, the end of its own text so far."""
        length, followers = _longest(self.texts, tail)
        if length in EARLIER_WEIGHTS and length > _longest(own, tail)[0]:
            self.trust.saw(length, token in followers)


def shares(
    text: Suffixes, tail: Sequence[int], recalled: Recalled | None = None
) -> dict[int, float]:
    """Token -> its probability behind the last tokens of a text, as far as it was looked up.

    The longest match decides, up to `LONGEST` tokens; its shares add up to its weight, and what is
    left to 1 is the draft model's. One in earlier texts that is longer than all in this one comes
    first, and leaves the rest to it. Empty if nothing fits.
    """
    length, followers = _longest(text, tail)
    likely = _weighted(followers, WEIGHTS[length]) if followers else {}
    if recalled is None:
        return likely
    further, there = _longest(recalled.texts, tail)
    if further not in EARLIER_WEIGHTS or further <= length:
        return likely
    trust = recalled.trust.of(further)
    likely = {token: (1 - trust) * share for token, share in likely.items()}
    for token, share in _weighted(there, trust).items():
        likely[token] = likely.get(token, 0.0) + share
    return likely


def _longest(text: Suffixes | Earlier, tail: Sequence[int]) -> tuple[int, Counter[int]]:
    """The length of the longest matches, and how often each token followed them."""
    found = [(min(length, LONGEST), token) for length, token in text.followers(tail[-LONGEST:])]
    longest = max((length for length, _ in found), default=0)
    return longest, Counter(token for length, token in found if length == longest)


def _weighted(followers: Counter[int], weight: float) -> dict[int, float]:
    return {token: weight * count / followers.total() for token, count in followers.items()}
