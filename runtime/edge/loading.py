"""The draft model on its way into memory, in a thread: first its vocabulary, then its weights.

Whatever is heavy is imported there, so that an edge speaks with its server meanwhile, and a signal
that ends the program is heard at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from runtime.config import NO_MODEL, EdgeConfig, ServerConfig

if TYPE_CHECKING:
    from runtime.edge.draft.batcher import Drafts
    from runtime.grammar.grammars import Grammars
    from runtime.grammar.matcher import Matcher
    from runtime.model.engine import Engine
    from runtime.model.tokenizer import Tokenizer

Result = TypeVar("Result")
MakeDrafter = Callable[[EdgeConfig], "Drafts"]

PAGE_TOKENS = 16
CONTEXT_TOKENS = 8192  # beyond it the edge stops drafting and decodes plainly


@dataclass(frozen=True)
class Vocabulary:
    """All that a greeting takes; `rows` are those of the draft's embedding, or the tokenizer's."""

    tokenizer: Tokenizer
    rows: int

    def matcher(self, kind: str, text: str) -> Matcher:
        """That of a constraint. Takes up to seconds; raises ValueError where it has none."""
        return self._grammars.matcher(kind, text)

    @cached_property
    def _grammars(self) -> Grammars:
        from runtime.grammar.grammars import Grammars
        from runtime.grammar.tokens import Tokens

        return Grammars(lambda: Tokens(self.tokenizer, self.rows))


class Loading:
    """Begins to load at once. Both futures may raise ModelError."""

    def __init__(self, config: EdgeConfig, make_drafter: MakeDrafter) -> None:
        self.vocabulary: Future[Vocabulary] = Future()
        self.drafter: Future[Drafts] = Future()
        # a daemon: nobody waits for it who has given up
        Thread(target=self._load, args=(config, make_drafter), name="loading", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a model."""
        futures = (self.vocabulary, self.drafter)
        return any(future.done() and future.exception() is not None for future in futures)

    def _load(self, config: EdgeConfig, make_drafter: MakeDrafter) -> None:
        _settle(self.vocabulary, lambda: read_vocabulary(config))
        if self.vocabulary.exception() is None:
            _settle(self.drafter, lambda: make_drafter(config))


def read_vocabulary(config: EdgeConfig) -> Vocabulary:
    """The tokenizer of the draft model, and its size. Raises ModelError."""
    from runtime.model.tokenizer import Tokenizer

    if config.draft == NO_MODEL:
        tokenizer = Tokenizer.load(config.tokenizer or ServerConfig.model)
        return Vocabulary(tokenizer, tokenizer.vocabulary_size)
    from runtime.model.open import vocabulary_size

    return Vocabulary(Tokenizer.load(config.draft), vocabulary_size(config.draft))


def open_draft(
    config: EdgeConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> Engine:
    """The draft model with its KV pool; `progress` hears of bytes. Raises ModelError."""
    from runtime.model.open import open_engine

    return open_engine(
        config.draft,
        config.weights,
        config.device,
        lambda model: min(model.max_context, CONTEXT_TOKENS),
        PAGE_TOKENS,
        progress,
        kv_dtype=config.kv_dtype,
        activations=config.activations,
        backend=config.backend,
    )


def make_drafter(
    config: EdgeConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> Drafts:
    """What drafts, with a model or without; `progress` hears of bytes. Raises ModelError."""
    if config.draft == NO_MODEL:
        from runtime.edge.draft.lookup_drafter import LookupDrafter

        return LookupDrafter()
    from runtime.edge.draft.drafter import Drafter

    return Drafter(open_draft(config, progress))


def _settle(future: Future[Result], make: Callable[[], Result]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:  # for whoever waits for it
        future.set_exception(error)
