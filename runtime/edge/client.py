"""Text in, text out: an edge as a library. Tokenises, runs the loop, counts, turns ids into text.

Synchronous on purpose: a caller iterates over pieces of text and needs no event loop of its own.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.config import ConfigError, EdgeConfig, parse_address, read_secret
from runtime.edge.answer_text import AnswerText, Piece
from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Proactive, TreeShape
from runtime.edge.loop import Drafting, Round
from runtime.edge.net.link import Credentials, Sampling, ServerError
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Answer, resuming
from runtime.edge.resume_file import load, save
from runtime.edge.statistics import Statistics
from runtime.model.open import open_engine
from runtime.model.tokenizer import Tokenizer
from runtime.terminal import inert
from runtime.wire import messages as wire
from runtime.wire.tls import TLSError, trust

DRAFT_PAGE_TOKENS = 16
DRAFT_CONTEXT_TOKENS = 8192  # beyond it the edge stops drafting and decodes plainly
MAX_TEMPLATE_FILE_BYTES = 2**20

Prompt = str | Sequence[Mapping[str, Any]]


class Edge:
    """A draft model and a connection to a server. Use as a context manager.

    Raises ConfigError or ModelError for what the user can mend, ServerError when the server
    refuses, or is gone for longer than `reconnect_s`; `on_lost` hears when that time begins.
    """

    def __init__(
        self, config: EdgeConfig, on_lost: Callable[[ServerError], None] = lambda error: None
    ):
        self.config = config
        self._on_lost = on_lost
        self.statistics = Statistics()
        self.last_ids: list[int] = []
        self._loop = asyncio.new_event_loop()
        self._uplink: Uplink | None = None
        _read_template(config.chat_template)  # a mistake is told before the model is loaded
        self.tokenizer = Tokenizer.load(config.draft)
        engine = open_engine(
            config.draft,
            config.dtype,
            config.device,
            lambda model: min(model.config.max_context, DRAFT_CONTEXT_TOKENS),
            DRAFT_PAGE_TOKENS,
            kv_dtype=config.kv_dtype,
        )
        self._batcher = Batcher(Drafter(engine))

    def __enter__(self) -> "Edge":
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def connect(self) -> None:
        """Greet the server. Raises ServerError."""
        rows = self._batcher.vocabulary_size
        try:
            hello = wire.Hello(
                wire.VERSION,
                rows,
                self.tokenizer.vocabulary_hash(rows),
                inert(Path(self.config.draft).name),  # not the path: it is nobody's business
                self.config.user,
                template_hash=wire.template_hash(self.tokenizer.portable_template),
            )
        except ValueError as error:
            raise ConfigError(f"the server cannot be greeted so: {error}") from error
        self._uplink = Uplink(*parse_address(self.config.server), hello, self._credentials())
        self._loop.run_until_complete(self._uplink.link())

    def _credentials(self) -> Credentials:
        token = read_secret(Path(self.config.token_file)).strip() if self.config.token_file else ""
        try:
            known = trust(self.config.tls)
        except TLSError as error:
            raise ConfigError(str(error)) from error
        return Credentials(token.encode(), known, self.tokenizer.vocabulary_hash)

    @property
    def connected(self) -> bool:
        """Whether the server is still there; a refused request leaves the link open."""
        return self._uplink is not None and self._uplink.alive

    def close(self) -> None:
        """Hang up and stop the worker; the edge cannot be used afterwards."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        if self._uplink is not None:
            self._loop.run_until_complete(self._uplink.close())
        self._loop.run_until_complete(self._batcher.close())
        self._loop.close()

    def generate(self, prompt: Prompt, **options: Any) -> Generator[Piece, None, None]:
        """Stream the answer to a prompt, or to messages with `role` and `content`.

        `options` override fields of the config, such as max_tokens, temperature, seed or stop.
        The text is as the model wrote it: give it to `terminal.inert` before a terminal sees it.
        Raises ConfigError for what cannot be asked.
        """
        config = replace(self.config, **options)
        answer = Answer(self._encode(prompt, config), self._sampling(config), stop=config.stop)
        if self._resume_path and self._resume_path.exists():
            raise ConfigError(
                f"{self._resume_path} holds an answer that has not ended; give --resume-file "
                "without --prompt to go on with it, or remove the file"
            )
        return self._stream(answer, config)

    def resume(self) -> Generator[Piece, None, None]:
        """Stream the answer in the resume file, from its beginning and to its end."""
        if self._resume_path is None:
            raise ConfigError("there is no answer to go on with; give --resume-file FILE")
        answer = load(self._resume_path, self.tokenizer.vocabulary_hash())
        self._check_ids(answer.rest[0])
        return self._stream(answer, self.config)

    @property
    def _resume_path(self) -> Path | None:
        return Path(self.config.resume_file) if self.config.resume_file else None

    def _stream(self, answer: Answer, config: EdgeConfig) -> Generator[Piece, None, None]:
        self.statistics, self.last_ids = Statistics(), answer.accepted
        text = AnswerText(self.tokenizer, answer.stop)
        for token in answer.accepted:
            yield from text.push(token, drafted=False)
        rounds = resuming(
            self._uplink,
            self._batcher,
            answer,
            self._drafting(config),
            config.reconnect_s,
            self._on_lost,
        )
        turns = self._timed(rounds)
        try:
            while not text.ended and (turn := next(turns, None)) is not None:
                pieces = self._read(turn, answer, text)
                self._keep(answer, ended=text.ended or turn.verdict.finish is not wire.Finish.NONE)
                yield from pieces
        finally:
            # ends the request on the server, if it is still running
            self._loop.run_until_complete(rounds.aclose())
        yield from text.finish()

    def _read(self, turn: Round, answer: Answer, text: AnswerText) -> list[Piece]:
        """Text of a round: the drafted tokens, then the target's own. A stop token has no text.

        What comes behind a stop string was not asked for, and is not counted.
        """
        pieces: list[Piece] = []
        shown = len(turn.tokens) - (turn.verdict.finish is wire.Finish.STOP)
        for place, token in enumerate(turn.tokens[:shown]):
            pieces += text.push(token, drafted=place < len(turn.tokens) - 1)
            if text.ended:
                tokens = turn.tokens[: place + 1]
                del answer.accepted[len(answer.accepted) - len(turn.tokens) + len(tokens) :]
                turn = replace(turn, step=replace(turn.step, tokens=tokens))
                break
        self.statistics.count(turn)
        return pieces

    def _keep(self, answer: Answer, ended: bool) -> None:
        """Bring the resume file up to date, before anybody sees the new tokens."""
        if self._resume_path is None:
            return
        if ended:
            self._resume_path.unlink(missing_ok=True)
        else:
            save(self._resume_path, answer, self.tokenizer.vocabulary_hash())

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, in the chat template unless `raw` was asked for.

        Raises ConfigError where the prompt is empty or no text, the template refuses it, or the
        target does not have one of its tokens.
        """
        return self._encode(prompt, self.config)

    def _encode(self, prompt: Prompt, config: EdgeConfig) -> list[int]:
        try:
            if config.raw and isinstance(prompt, str):
                ids = self.tokenizer.encode(prompt)
            else:
                ids = self.tokenizer.chat_prompt(
                    _conversation(prompt, config.system),
                    template=self._template(config),
                    enable_thinking=config.enable_thinking,
                )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not ids:
            raise ConfigError("the prompt is empty; give at least one character")
        self._check_ids(ids)
        return ids

    def _template(self, config: EdgeConfig) -> str | None:
        """The chat template to use, None for the draft's own. Raises ConfigError."""
        if config.chat_template:
            return _read_template(config.chat_template)
        targets = self._uplink.template if self._uplink else None
        if targets is None:  # it has the same, or none
            return None
        if not targets.source:
            raise ConfigError(
                "the chat template of the target is too long to be sent; "
                "give --chat-template FILE, or --chat-template draft"
            )
        return targets.source

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Raises ConfigError where the target does not have one of them."""
        rows = self._target_rows
        for index in ids:
            if index >= rows:
                raise ConfigError(
                    f"the prompt has the token {self.tokenizer.token(index)!r} (id {index}), "
                    f"and the target knows only ids below {rows}; leave it out"
                )

    @property
    def _target_rows(self) -> int:
        welcome = self._uplink.welcome if self._uplink else None
        return welcome.vocabulary_size if welcome else wire.MAX_VOCABULARY

    def _stop_ids(self, stop: Sequence[str]) -> tuple[int, ...]:
        """The draft's own and control tokens that `stop` spells; the server adds the target's.

        Raises ConfigError.
        """
        # a control token has no text, but may be what somebody wants to stop at
        wanted = self.tokenizer.stop_ids | self.tokenizer.control_ids(stop)
        ids = sorted(index for index in wanted if 0 <= index < self._target_rows)
        if len(ids) > wire.MAX_STOP_IDS:
            raise ConfigError(
                f"{self.config.draft} and --stop name {len(ids)} stop ids; "
                f"a request carries at most {wire.MAX_STOP_IDS}"
            )
        return tuple(ids)

    def _sampling(self, config: EdgeConfig) -> Sampling:
        return Sampling(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            seed=config.seed,
            stop_ids=self._stop_ids(config.stop),
        )

    @staticmethod
    def _drafting(config: EdgeConfig) -> Drafting:
        shape = TreeShape(
            config.max_budget, config.max_n_beams, config.max_beam_len, config.max_branch_width
        )
        return Drafting(shape, config.coupling, Proactive(config.proactive))

    def _timed(self, rounds: AsyncGenerator[Round, None]) -> Iterator[Round]:
        """Drive the asynchronous loop from here, counting bytes and time as it goes."""
        stats, started_s = self.statistics, time.monotonic()
        uplink = self._uplink
        sent, received, opened = uplink.bytes_sent, uplink.bytes_received, uplink.opened
        while (turn := self._next_round(rounds)) is not None:
            stats.seconds = time.monotonic() - started_s
            stats.first_token_s = stats.first_token_s or stats.seconds
            stats.bytes_sent = uplink.bytes_sent - sent
            stats.bytes_received = uplink.bytes_received - received
            stats.reconnects = uplink.opened - opened
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


def _conversation(prompt: Prompt, system: str | None) -> list[Mapping[str, Any]]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Iterable):
        raise ValueError(f"the prompt is {prompt!r}; expected a text, or a list of messages")
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *messages]


def _read_template(option: str) -> str | None:
    """The text of a chat template's file; None where the option names no file. ConfigError."""
    if option in ("", "draft"):
        return None
    try:
        with open(option, encoding="utf-8") as file:
            template = file.read(MAX_TEMPLATE_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read --chat-template {option}: {reason}") from error
    if len(template) > MAX_TEMPLATE_FILE_BYTES:
        raise ConfigError(f"--chat-template {option} is longer than any template: it is not one")
    return template


def generate(prompt: Prompt, **options: Any) -> Iterator[str]:
    """Connect, stream the answer as text, hang up. `options` are fields of `EdgeConfig`."""
    with Edge(EdgeConfig(**options)) as edge:
        for piece in edge.generate(prompt):
            yield piece.text
