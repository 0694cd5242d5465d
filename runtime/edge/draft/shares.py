"""How likely what stood behind the same words before in a text comes again.

Answers often repeat names, numbers and phrases of the prompt, which a small draft model cannot
know.
"""

from collections import Counter
from collections.abc import Sequence

from runtime.edge.draft.suffixes import Suffixes

# How far a match of this length, or of the longest or more, is trusted against the draft model:
# fitted on text that the embedded target wrote, see runtime/embedded/README.md.
WEIGHTS = {1: 0.1, 2: 0.3, 3: 0.5, 4: 0.6, 5: 0.65, 6: 0.7, 7: 0.75, 8: 0.85}
LONGEST = max(WEIGHTS)


def shares(text: Suffixes, tail: Sequence[int]) -> dict[int, float]:
    """Token -> its probability behind the last tokens of a text, as far as it was looked up.

    The longest match decides, up to `LONGEST` tokens; its shares add up to its weight, and what is
    left to 1 is the draft model's. Empty if nothing fits.
    """
    found = [(min(length, LONGEST), token) for length, token in text.followers(tail[-LONGEST:])]
    longest = max((length for length, _ in found), default=0)
    followers = Counter(token for length, token in found if length == longest)
    return {
        token: WEIGHTS[longest] * count / followers.total() for token, count in followers.items()
    }
