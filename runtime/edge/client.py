"""Text in, text out: an edge as a library. Tokenises, runs the loop, counts, turns ids into text.

Synchronous on purpose: a caller iterates over pieces of text and needs no event loop of its own.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.config import ConfigError, EdgeConfig, parse_address
from runtime.edge.drafter import Drafter, TreeShape
from runtime.edge.loop import Drafting, Link, Round, Sampling
from runtime.edge.loop import generate as generate_rounds
from runtime.model.open import open_engine
from runtime.model.tokenizer import TextStream, Tokenizer
from runtime.wire import messages as wire

DRAFT_PAGE_TOKENS = 16
DRAFT_CONTEXT_TOKENS = 8192  # beyond it the edge stops drafting and decodes plainly

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Piece:
    """A bit of the answer; `drafted` tells that the edge had predicted it."""

    text: str
    drafted: bool


@dataclass
class Statistics:
    """What one answer took. Bytes count whole frames in both directions."""

    tokens: int = 0
    verifications: int = 0
    drafted_nodes: int = 0
    accepted_nodes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0
    verify_ms: int = 0  # as the server reports it; a step is counted by each request in it

    @property
    def tokens_per_second(self) -> float:
        """Over the whole answer, the prompt's time included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_verification(self) -> float:
        """Tokens gained by one round of draft and verification, the first token not counted."""
        return (self.tokens - 1) / (self.verifications - 1) if self.verifications > 1 else 0.0

    @property
    def bytes_per_round(self) -> float:
        """Tree up and verdict down; the prompt is counted too."""
        total = self.bytes_sent + self.bytes_received
        return total / self.verifications if self.verifications else 0.0

    @property
    def server_ms_per_token(self) -> float:
        """What a token costs the server: its verification steps over the tokens they gave."""
        return self.verify_ms / self.tokens if self.tokens else 0.0

    def count(self, turn: Round) -> None:
        """Add one verdict."""
        self.verifications += 1
        self.tokens += len(turn.tokens)
        self.drafted_nodes += turn.drafted
        self.accepted_nodes += len(turn.tokens) - 1
        self.verify_ms += turn.verdict.verify_ms


class Edge:
    """A draft model and a connection to a server. Use as a context manager.

    Raises ConfigError or ModelError for what the user can mend, ServerError when the server
    refuses or goes away.
    """

    def __init__(self, config: EdgeConfig):
        self.config = config
        self.statistics = Statistics()
        self.last_ids: list[int] = []
        self._draft_thread = ThreadPoolExecutor(1, thread_name_prefix="draft")
        self._loop = asyncio.new_event_loop()
        self._link: Link | None = None
        self.tokenizer = Tokenizer.load(config.draft)
        engine = open_engine(
            config.draft,
            config.dtype,
            config.device,
            lambda model: min(model.config.max_context, DRAFT_CONTEXT_TOKENS),
            DRAFT_PAGE_TOKENS,
        )
        self._drafter = Drafter(engine)

    def __enter__(self) -> "Edge":
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def connect(self) -> None:
        """Greet the server. Raises ServerError."""
        hello = wire.Hello(
            wire.VERSION,
            self.tokenizer.vocabulary_size,
            self.tokenizer.vocabulary_hash(),
            Path(self.config.draft).name,  # not the path: it is nobody's business
        )
        self._link = self._loop.run_until_complete(
            Link.open(*parse_address(self.config.server), hello)
        )

    @property
    def connected(self) -> bool:
        """Whether the server is still there; a refused request leaves the link open."""
        return self._link is not None and self._link.alive

    def close(self) -> None:
        """Hang up and stop the worker; the edge cannot be used afterwards."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        if self._link is not None:
            self._loop.run_until_complete(self._link.close())
        self._draft_thread.shutdown()
        self._loop.close()

    def generate(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """Stream the answer to a prompt, or to messages with `role` and `content`.

        `options` override fields of the config, such as max_tokens, temperature or seed.
        """
        config = replace(self.config, **options)
        ids = self.encode(prompt)
        self.statistics, self.last_ids = Statistics(), []
        rounds = generate_rounds(
            self._link,
            self._drafter,
            ids,
            self._sampling(config),
            self._drafting(config),
            self._draft_thread,
        )
        text = TextStream(self.tokenizer)
        try:
            for turn in self._timed(rounds):
                yield from self._pieces(turn, text)
        finally:
            self._loop.run_until_complete(rounds.aclose())
        if tail := text.finish():
            yield Piece(tail, drafted=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, in the chat template unless `raw` was asked for."""
        if self.config.raw and isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if self.config.system:
                messages = [{"role": "system", "content": self.config.system}, *messages]
            ids = self.tokenizer.chat_prompt(messages)
        if not ids:
            raise ConfigError("the prompt is empty; give at least one character")
        return ids

    def _sampling(self, config: EdgeConfig) -> Sampling:
        return Sampling(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            seed=config.seed,
            stop_ids=tuple(sorted(self.tokenizer.stop_ids)),
        )

    @staticmethod
    def _drafting(config: EdgeConfig) -> Drafting:
        shape = TreeShape(
            config.max_budget, config.max_n_beams, config.max_beam_len, config.max_branch_width
        )
        return Drafting(shape, config.coupling)

    def _timed(self, rounds: AsyncGenerator[Round, None]) -> Iterator[Round]:
        """Drive the asynchronous loop from here, counting as it goes."""
        stats, started_s = self.statistics, time.monotonic()
        sent, received = self._link.bytes_sent, self._link.bytes_received
        while (turn := self._next_round(rounds)) is not None:
            stats.count(turn)
            stats.seconds = time.monotonic() - started_s
            stats.first_token_s = stats.first_token_s or stats.seconds
            stats.bytes_sent = self._link.bytes_sent - sent
            stats.bytes_received = self._link.bytes_received - received
            self.last_ids += turn.tokens
            yield turn

    def _next_round(self, rounds: AsyncGenerator[Round, None]) -> Round | None:
        """The next verdict, None at the end of the text. Ctrl-C leaves nothing half done."""

        async def step() -> Round | None:
            return await anext(rounds, None)

        task = self._loop.create_task(step())
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
            raise

    def _pieces(self, turn: Round, text: TextStream) -> Iterator[Piece]:
        """Text of a round: the drafted tokens, then the target's own. A stop token has no text."""
        drafted, own = list(turn.tokens[:-1]), [turn.tokens[-1]]
        if turn.verdict.finish is wire.Finish.STOP:
            own = []
        for ids, is_drafted in ((drafted, True), (own, False)):
            if piece := text.push(ids):
                yield Piece(piece, is_drafted)


def generate(prompt: Prompt, **options: Any) -> Iterator[str]:
    """Connect, stream the answer as text, hang up. `options` are fields of `EdgeConfig`."""
    with Edge(EdgeConfig(**options)) as edge:
        for piece in edge.generate(prompt):
            yield piece.text
