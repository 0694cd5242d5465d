"""An answer that is known token by token, and is asked for all the same: to hear what a model
thinks of each. Any ids may be in it, those of stop tokens and of parts of characters too."""

from collections.abc import Sequence

import numpy as np

MOST_DIGITS = 8  # of an id: no vocabulary is larger


class Given:
    """Where an answer stands that goes on with these tokens alone. As `Matcher`."""

    def __init__(self, tokens: Sequence[int], size: int):
        """size: rows of the model's embedding."""
        self.tokens, self._words, self._done = tokens, -(-size // 32), 0

    @classmethod
    def parsed(cls, text: str, size: int) -> "Given":
        """Of ids in decimals with a space between two. Raises ValueError."""
        tokens = []
        for word in text.split(" "):
            if not (word.isascii() and word.isdigit() and len(word) <= MOST_DIGITS):
                raise ValueError(f"the tokens cannot be enforced: {word[:40]!r} is no id")
            if int(word) >= size:
                raise ValueError(f"the tokens cannot be enforced: there are only ids below {size}")
            tokens.append(int(word))
        return cls(tokens, size)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take more tokens into the answer. Raises ValueError where it goes on with others."""
        end = self._done + len(tokens)
        if [*tokens] != [*self.tokens[self._done : end]]:
            raise ValueError("the answer does not begin with the tokens that it is held to")
        self._done = end

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> np.ndarray:
        """As `Matcher.masks`; nothing follows a node off the way, nor the last of the tokens."""
        places: list[int | None] = [self._done]
        for token, parent in zip(tokens, parents, strict=True):
            place = places[parent]
            fits = place is not None and self.tokens[place : place + 1] == [token]
            places.append(place + 1 if place is not None and fits else None)
        masks = np.zeros((len(places), self._words), np.uint32)
        for row, place in enumerate(places):
            if place is not None and place < len(self.tokens):
                masks[row, self.tokens[place] // 32] = 1 << self.tokens[place] % 32
        return masks.view(np.int32)
