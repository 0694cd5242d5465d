"""The draft model on its way into memory, in a thread: first its vocabulary, then its weights.

Whatever is heavy is imported there, so that an edge speaks with its server meanwhile, and a signal
that ends the program is heard at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from threading import Thread, main_thread
from typing import TYPE_CHECKING, TypeVar

from runtime.config import NO_MODEL, EdgeConfig, ServerConfig
from runtime.edge.draft.suffixes import Earlier
from runtime.logs import fields
from runtime.named import made, unlike
from runtime.wire.messages import MAX_VOCABULARY

if TYPE_CHECKING:
    from runtime.edge.draft.batcher import Drafts
    from runtime.edge.draft.translation import Translation
    from runtime.grammar.grammars import Grammars
    from runtime.grammar.matcher import Matcher
    from runtime.model.engine import Engine
    from runtime.model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Result = TypeVar("Result")
MakeDrafter = Callable[[EdgeConfig], "Drafts"]

PAGE_TOKENS = 16
CONTEXT_TOKENS = 8192  # beyond it the edge stops drafting and decodes plainly


@dataclass(frozen=True)
class Vocabulary:
    """All that a greeting takes; `rows` are those of the draft's embedding, or of --tokenizer."""

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
        # no daemon: torch must not be at work while the interpreter is taken down under it
        given = (config, make_drafter)
        Thread(target=self._load, args=given, name="loading", daemon=False).start()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a model."""
        futures = (self.vocabulary, self.drafter)
        return any(future.done() and future.exception() is not None for future in futures)

    def _load(self, config: EdgeConfig, make_drafter: MakeDrafter) -> None:
        _settle(self.vocabulary, lambda: read_vocabulary(config))
        if self.vocabulary.exception() is None and main_thread().is_alive():
            _settle(self.drafter, lambda: make_drafter(config))


def read_vocabulary(config: EdgeConfig) -> Vocabulary:
    """That in which the edge speaks with its server, and its size. Raises ModelError."""
    from runtime.model.tokenizer import Tokenizer

    if config.tokenizer or config.draft == NO_MODEL:
        tokenizer = Tokenizer.load(config.tokenizer or ServerConfig.model)
        return Vocabulary(tokenizer, tokenizer.vocabulary_size)
    from runtime.model.open import vocabulary_size

    return Vocabulary(Tokenizer.load(config.draft), vocabulary_size(config.draft))


def open_draft(
    config: EdgeConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> Engine:
    """The draft model with its KV pool; `progress` hears of bytes. Raises ModelError.

    Where the program has ended meanwhile, as one that the server refused, it is not loaded on.
    """
    from runtime.model.config import ModelError
    from runtime.model.open import open_engine

    def loaded(done: int, total: int) -> None:
        if not main_thread().is_alive():
            raise ModelError("the program has ended")
        progress(done, total)

    return open_engine(
        config.draft,
        config.weights,
        config.device,
        lambda model: min(model.max_context, CONTEXT_TOKENS),
        PAGE_TOKENS,
        loaded,
        kv_dtype=config.kv_dtype,
        activations=config.activations,
        backend=config.backend,
        batch_invariant=config.batch_invariant,
    )


def make_drafter(
    config: EdgeConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> Drafts:
    """What drafts, with a model or without; `progress` hears of bytes.

    Raises ModelError, and ConfigError where `--drafter` names what makes none.
    """
    if config.drafter:
        return _named_drafter(config)
    if config.draft == NO_MODEL:
        from runtime.edge.draft.lookup_drafter import LookupDrafter

        return LookupDrafter(Earlier(config.earlier_tokens))
    from runtime.edge.draft.drafter import Drafter

    earlier = Earlier(config.earlier_tokens) if config.earlier_tokens else None
    translation = translation_for(config)
    engine = open_draft(config, progress)
    if translation is None:
        return Drafter(engine, earlier=earlier)
    from runtime.edge.draft.foreign_drafter import ForeignDrafter

    return ForeignDrafter(Drafter(engine, translation.names, earlier), translation)


def _named_drafter(config: EdgeConfig) -> Drafts:
    """That of `--drafter`. Raises ConfigError."""
    name, option = config.drafter, "--drafter"
    drafter: Drafts = made(name, option, "what makes a drafter of the edge's config", config)
    size = getattr(drafter, "vocabulary_size", None)
    methods = [getattr(drafter, method, None) for method in ("run", "finish")]
    is_whole = isinstance(size, int) and all(map(callable, methods))
    if isinstance(drafter, type) or not is_whole:
        raise unlike(name, option, drafter, "a drafter, which has vocabulary_size, run and finish")
    return drafter


def translation_for(config: EdgeConfig) -> Translation | None:
    """Between the draft and `--tokenizer`; None where they have one vocabulary. ModelError."""
    if not config.tokenizer or config.draft == NO_MODEL:
        return None
    from runtime.edge.draft.pieces import Pieces
    from runtime.edge.draft.translation import Translation
    from runtime.model.config import ModelError
    from runtime.model.open import vocabulary_size
    from runtime.model.tokenizer import Tokenizer

    target, draft = Tokenizer.load(config.tokenizer), Tokenizer.load(config.draft)
    size, rows = target.vocabulary_size, vocabulary_size(config.draft)
    if size > MAX_VOCABULARY:
        raise ModelError(f"the tokenizer {config.tokenizer} has ids up to {size - 1}: it is none")
    both = min(size, rows)
    if target.vocabulary_hash(both) == draft.vocabulary_hash(both):
        return None
    translation = Translation(Pieces(target, size), Pieces(draft, rows))
    if not translation.shared:
        raise ModelError(
            f"{config.draft} and the tokenizer {config.tokenizer} have no piece of text in common; "
            f"use a draft of the target's family, or --draft {NO_MODEL}"
        )
    log.info(
        "the draft has another vocabulary", extra=fields(shared=translation.shared, pieces=rows)
    )
    return translation


def _settle(future: Future[Result], make: Callable[[], Result]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:  # for whoever waits for it
        future.set_exception(error)
