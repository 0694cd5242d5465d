"""How an edge greets: who it is, what it drafts with, and whom it takes for its server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.config import NO_MODEL, ConfigError, EdgeConfig, ServerConfig
from runtime.option_files import read_token
from runtime.terminal import inert
from runtime.wire import messages as wire
from runtime.wire.tls import TLSError, Trust, trust

if TYPE_CHECKING:
    from runtime.edge.loading import Vocabulary


def hello(config: EdgeConfig, vocabulary: Vocabulary) -> wire.Hello:
    """Without the nonce, which is new for every link. Raises ConfigError."""
    tokenizer, rows = vocabulary.tokenizer, vocabulary.rows
    try:
        return wire.Hello(
            wire.OFFERS_VERSION if makes_offers(config) else wire.VERSION,
            rows,
            tokenizer.vocabulary_hash(rows),
            _drafts_with(config),
            config.user,
            template_hash=wire.template_hash(tokenizer.portable_template),
        )
    except ValueError as error:
        raise ConfigError(f"the server cannot be greeted so: {error}") from error


def makes_offers(config: EdgeConfig) -> bool:
    """Whether it drafts unasked too, where the server says that this is of use."""
    return config.offers and config.max_budget > 0


def _drafts_with(config: EdgeConfig) -> str:
    """For people: the draft, and whose tokens it writes where that is not its own affair."""
    # not the paths: they are nobody's business
    draft, tokenizer = inert(Path(config.draft).name), inert(Path(config.tokenizer).name)
    if config.draft == NO_MODEL:
        return f"no draft model, tokenizer of {tokenizer or ServerConfig.model}"
    return f"{draft}, tokenizer of {tokenizer}" if tokenizer else draft


def token(config: EdgeConfig) -> bytes:
    """The user's; empty for nobody. Raises ConfigError."""
    return read_token(Path(config.token_file)).encode() if config.token_file else b""


def trusted(config: EdgeConfig) -> Trust | None:
    """Which servers are taken for ours; None without TLS. Raises ConfigError."""
    try:
        return trust(config.tls)
    except TLSError as error:
        raise ConfigError(str(error)) from error
