"""Constraints of answers on the server: compiled, and walked along trees, in threads of their own.

The masks of a tree are asked for when it has come, and it enters a step when they are there. A
tokenizer is loaded with the first constraint, for most servers never have one.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runtime.model.tokenizer import Tokenizer
from runtime.wire.messages import Constraint, ConstraintKind

if TYPE_CHECKING:
    from runtime.grammar.given import Given
    from runtime.grammar.grammars import Grammars
    from runtime.grammar.matcher import Matcher

MOST_THREADS = 4  # a walk gives the interpreter to others, but for its own few lines


class Guide:
    """The constraint of one request.

    given   its whole answer, where the constraint says it token by token
    """

    def __init__(
        self, matcher: "Matcher | Given", threads: ThreadPoolExecutor, given: Sequence[int] = ()
    ):
        self._matcher, self._threads, self.given = matcher, threads, given
        self._masks: Future[Any] | None = None  # of the draft that is to be verified next

    def masks(self, tokens: Sequence[int], parents: Sequence[int]) -> Future[Any]:
        """As `Matcher.masks`, of the one draft that there is until `advance`."""
        if self._masks is None:
            self._masks = self._threads.submit(self._matcher.masks, tokens, parents)
        return self._masks

    def advance(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these, which the masks have allowed."""
        assert self._masks is None or self._masks.done(), "a verdict without its masks"
        self._masks = None
        # a grammar that has become too complex allows nothing from here on, which ends the request
        with suppress(ValueError):
            self._matcher.advance(tokens)


class Guides:
    """Guides for the constraints of one target."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer], vocabulary_size: int):
        """load_tokenizer: raises ModelError; vocabulary_size: rows of the target's embedding."""
        self._load_tokenizer, self._vocabulary_size = load_tokenizer, vocabulary_size
        self._grammars: Grammars | None = None
        self._making = threading.Lock()
        self._threads = ThreadPoolExecutor(
            min(MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="guide"
        )

    async def guide(self, constraint: Constraint, answer: Sequence[int]) -> Guide:
        """That of an answer which has begun so.

        Raises ValueError where it cannot be enforced, ModelError where there is no tokenizer.
        """
        return await asyncio.to_thread(self._guide, constraint, answer)

    def _guide(self, constraint: Constraint, answer: Sequence[int]) -> Guide:
        if constraint.kind is ConstraintKind.TOKENS:
            return self._given(constraint.text, answer)
        from runtime.grammar.grammars import Grammars
        from runtime.grammar.tokens import Tokens

        with self._making:
            if self._grammars is None:
                rows = self._vocabulary_size
                self._grammars = Grammars(lambda: Tokens(self._load_tokenizer(), rows))
        matcher = self._grammars.matcher(constraint.kind.name.lower(), constraint.text)
        matcher.advance(answer)
        return Guide(matcher, self._threads)

    def _given(self, text: str, answer: Sequence[int]) -> Guide:
        from runtime.grammar.given import Given

        given = Given.parsed(text, self._vocabulary_size)
        given.advance(answer)
        if len(answer) == len(given.tokens):
            raise ValueError("the answer has all the tokens that it is held to already")
        return Guide(given, self._threads, given.tokens)

    def close(self) -> None:
        """Stop the threads; no masks are asked for any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
