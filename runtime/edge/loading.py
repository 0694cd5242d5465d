"""The draft model on its way into memory, in a thread: first its vocabulary, then its weights.

Whatever is heavy is imported there, so that an edge speaks with its server meanwhile, and a signal
that ends the program is heard at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from runtime.config import EdgeConfig

if TYPE_CHECKING:
    from runtime.edge.draft.drafter import Drafter
    from runtime.model.tokenizer import Tokenizer

Result = TypeVar("Result")

PAGE_TOKENS = 16
CONTEXT_TOKENS = 8192  # beyond it the edge stops drafting and decodes plainly


@dataclass(frozen=True)
class Vocabulary:
    """All that a greeting takes; `rows` are those of the draft's embedding."""

    tokenizer: Tokenizer
    rows: int


class Loading:
    """Begins to load at once. Both futures may raise ModelError."""

    def __init__(self, config: EdgeConfig) -> None:
        self.vocabulary: Future[Vocabulary] = Future()
        self.drafter: Future[Drafter] = Future()
        # a daemon: nobody waits for it who has given up
        Thread(target=self._load, args=(config,), name="loading", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a model."""
        futures = (self.vocabulary, self.drafter)
        return any(future.done() and future.exception() is not None for future in futures)

    def _load(self, config: EdgeConfig) -> None:
        _settle(self.vocabulary, lambda: read_vocabulary(config))
        if self.vocabulary.exception() is None:
            _settle(self.drafter, lambda: open_drafter(config))


def read_vocabulary(config: EdgeConfig) -> Vocabulary:
    """The tokenizer of the draft model, and its size. Raises ModelError."""
    from runtime.model.checkpoint import open_checkpoint
    from runtime.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(config.draft)
    return Vocabulary(tokenizer, open_checkpoint(config.draft).config.vocab_size)


def open_drafter(config: EdgeConfig) -> Drafter:
    """The draft model, ready to draft. Raises ModelError."""
    from runtime.edge.draft.drafter import Drafter
    from runtime.model import open as models

    engine = models.open_engine(
        config.draft,
        config.weights,
        config.device,
        lambda model: min(model.config.max_context, CONTEXT_TOKENS),
        PAGE_TOKENS,
        kv_dtype=config.kv_dtype,
        activations=config.activations,
    )
    return Drafter(engine)


def _settle(future: Future[Result], make: Callable[[], Result]) -> None:
    try:
        future.set_result(make())
    except BaseException as error:  # for whoever waits for it
        future.set_exception(error)
