"""Which tokens a draft goes on with where its answer has to fit a constraint.

The server refuses all others, so that drafts of them would be wasted; the text is the same without.
Knows no grammar: a matcher is made when the first draft wants it, and by the thread that drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Matcher(Protocol):
    """Where an answer stands in its grammar. Masks are [rows, words] int32, bits."""

    def advance(self, tokens: Sequence[int]) -> None:
        """Take more tokens into the answer. Raises ValueError for those that do not fit."""

    def after(self, paths: Sequence[Sequence[int]]) -> np.ndarray:
        """What may follow each of these ways behind the answer."""


class Guide:
    """The constraint of one request, whose answer begins at a place of its context."""

    def __init__(self, make_matcher: Callable[[], Matcher], begin: int):
        self._make_matcher, self._done = make_matcher, begin
        self._matcher: Matcher | None = None
        self._is_lost = False

    def after(self, context: Sequence[int], paths: Sequence[Sequence[int]]) -> np.ndarray | None:
        """What may follow each of these ways behind the context: [paths, words] int32.

        None where nothing is known: the constraint cannot be enforced here, or the target, with
        which alone it counts, has gone another way.
        """
        if self._is_lost:
            return None
        try:
            if self._matcher is None:
                self._matcher = self._make_matcher()
            self._matcher.advance(context[self._done :])
        except ValueError:
            self._is_lost = True
            return None
        self._done = len(context)
        return self._matcher.after(paths)

    def allowed(
        self, context: Sequence[int], path: Sequence[int], tokens: Iterable[int]
    ) -> list[int]:
        """Those of some tokens that may follow one way; all where nothing is known."""
        masks = self.after(context, [path])
        if masks is None:
            return [*tokens]
        return [token for token in tokens if masks[0, token // 32] >> token % 32 & 1]
