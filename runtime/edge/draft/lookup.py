"""Prompt lookup: what followed the last tokens when they stood in the text before.

Answers often repeat names, numbers and phrases of the prompt, which a small draft model cannot
know. There is no index to be built or kept: the text itself is searched, which takes about 0.1 ms
where it has 131,072 tokens.
Source: prompt-lookup decoding (Saxena, 2023), here as a distribution mixed into the draft's own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

# How far a match of this length is trusted against the draft model: fitted on text that the
# embedded target wrote, see runtime/embedded/README.md. The result depends on them only weakly.
WEIGHTS = {3: 0.5, 2: 0.2, 1: 0.05}
LONGEST = max(WEIGHTS)


class Lookup:
    """One text, growing, and what followed the n-grams of it, for the lengths of `WEIGHTS`."""

    def __init__(self) -> None:
        self._text = np.empty(0, np.uint32)  # with room for more behind the first `_size` tokens
        self._size = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        new = np.array([*tokens], np.uint32)
        end = self._size + len(new)
        if end > len(self._text):
            self._text = np.concatenate((self._text[: self._size], new, np.empty(end, np.uint32)))
        else:
            self._text[self._size : end] = new
        self._size = end

    def next_tokens(self, path: Sequence[int]) -> dict[int, float]:
        """Token -> share of the mixture, after the text and then `path`; empty if nothing fits.

        The longest n-gram that occurred before decides; its shares add up to its weight.
        """
        text = self._text[: self._size]
        tail = [*text[-LONGEST:].tolist(), *path][-LONGEST:]
        if not tail:
            return {}
        # places behind the last `matched` tokens of the tail
        after, matched = np.flatnonzero(text[:-1] == tail[-1]) + 1, 1
        while len(after) and matched < len(tail):
            longer = after[after > matched]
            longer = longer[text[longer - matched - 1] == tail[-matched - 1]]
            if not len(longer):
                break
            after, matched = longer, matched + 1
        followers = Counter(text[after].tolist())
        return {token: WEIGHTS[matched] * n / len(after) for token, n in followers.items()}
