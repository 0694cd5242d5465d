"""An edge as a library: text in, text out, from plain code and from asyncio.

Both fronts stand on a thread that owns the event loop, the connection and the drafting. So the
server hears of the edge between answers too, and any number of answers are written at once, from
any threads and tasks; their requests share one connection and the passes of one draft model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.background import Background
from runtime.config import ConfigError, EdgeConfig
from runtime.edge.answer import Answer, AsyncAnswer, Stream
from runtime.edge.loading import MakeDrafter, make_drafter
from runtime.edge.loop import Round
from runtime.edge.net.link import ServerError
from runtime.edge.options import RequestOptions, of_request
from runtime.edge.prompts import Prompt, Prompts, read_template
from runtime.edge.resume import FinishReason, Transcript
from runtime.edge.resume_file import ResumeFile, load
from runtime.edge.worker import Worker
from runtime.option_files import is_there

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runtime.model.tokenizer import Tokenizer

Result = TypeVar("Result")


class _Front:
    """What both forms of an edge have."""

    def __init__(
        self,
        config: EdgeConfig | None = None,
        on_lost: Callable[[ServerError], None] = lambda error: None,
        make_drafter: MakeDrafter = make_drafter,
    ) -> None:
        """config: how to reach the server, what to draft with, and the options of its answers.

        `on_lost` is told, in the edge's own thread, when a lost server begins to be looked for;
        `make_drafter` makes what drafts, in a thread (docs/extend.md). Raises ConfigError.
        """
        self.config = config or EdgeConfig()
        read_template(self.config.chat_template)  # a mistake is told before anything is loaded
        self._worker = Worker(self.config, on_lost, make_drafter)
        self._background = Background()
        self._closed = False
        self._kept: Future[FinishReason] | None = None  # the last answer that has a resume file

    def watch(self, on_round: Callable[[int, Round], None]) -> None:
        """Tell each round of every answer, with the answer's number, in the edge's own thread."""
        self._worker.on_round = on_round

    @property
    def connected(self) -> bool:
        """Whether the server is still there; a refused request leaves the link open."""
        return self._worker.connected

    @property
    def tokenizer(self) -> Tokenizer:
        """The draft model's. Raises ServerError before `connect`."""
        return self._prompts.tokenizer

    @property
    def model(self) -> str:
        """The target's name. Raises ServerError before `connect`, as the next one does."""
        return self._prompts.welcome.model

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the server's adapters, as far as it has told them."""
        return self._prompts.adapters

    @property
    def max_context(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self._prompts.welcome.max_context

    @property
    def rtt_s(self) -> float:
        """Of the way to the server and back, as it was when that was greeted; 0 before."""
        return self._worker.uplink.rtt_s if self._worker.uplink is not None else 0.0

    def check_room(self, answers: int) -> None:
        """Raises ServerError where the server does not allow so many more at once."""
        self._check_open()
        self._worker.check_room(answers)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source by which conversations are written; None where there is none."""
        return self._prompts.chat_template(self.config)

    def encode(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> list[int]:
        """Token ids of a prompt, in the chat template unless `raw` was asked for.

        Raises ConfigError where the prompt is empty or no text, the template refuses it, or the
        target does not have one of its tokens.
        """
        return self._prompts.encode(prompt, of_request(self.config, options))

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text; with `special`, and the model's own first token where it wants one.

        Raises ConfigError for what is no text.
        """
        return self._prompts.tokenize(text, special)

    @property
    def _prompts(self) -> Prompts:
        self._check_open()
        if self._worker.prompts is None:
            raise ServerError(
                "this edge has no server yet; call connect(), or use it as a context manager"
            )
        return self._worker.prompts

    @property
    def _resume_path(self) -> Path | None:
        return Path(self.config.resume_file) if self.config.resume_file else None

    def _check_open(self) -> None:
        if self._closed:
            raise ServerError("this edge is closed; make a new one")

    def _ask(self, prompt: Prompt, options: Mapping[str, Any]) -> _Written:
        config = of_request(self.config, options)
        transcript = self._prompts.transcript(prompt, config)
        self._check_unkept()
        if self._resume_path and is_there(self._resume_path):
            if not self._resume_path.is_file():
                sentence = "is a folder or a device; expected a file"
                raise ConfigError(f"--resume-file {self._resume_path} {sentence}")
            raise ConfigError(
                f"{self._resume_path} holds an answer that has not ended; give --resume-file "
                "without --prompt to go on with it, or remove the file"
            )
        return self._write(transcript, config)

    def _go_on(self) -> _Written:
        prompts = self._prompts
        if self._resume_path is None:
            raise ConfigError("there is no answer to go on with; give --resume-file FILE")
        self._check_unkept()
        transcript = load(self._resume_path, prompts.tokenizer.vocabulary_hash())
        prompts.check_ids(transcript.rest[0])
        return self._write(transcript, self.config)

    def _write(self, transcript: Transcript, config: EdgeConfig) -> _Written:
        stream, path = Stream(), self._resume_path
        digest = self._prompts.tokenizer.vocabulary_hash
        file = ResumeFile(path, digest()) if path else None
        writing = self._background.run(self._worker.write(transcript, config, stream, file))
        self._kept = writing if file else None
        return stream, writing, file.remove if file else lambda: None

    def _check_unkept(self) -> None:
        if self._kept is not None and not self._kept.done():
            raise ConfigError(
                f"{self._resume_path} keeps one answer, and another one is being written; "
                "wait for it, or leave --resume-file out"
            )

    def _connecting(self) -> Future[None]:
        self._check_open()
        return self._background.run(self._worker.connect())

    def _closing(self) -> Future[None] | None:
        """None where it is closed already, or was never connected."""
        was_open, self._closed = not self._closed, True
        return self._background.run(self._worker.close()) if was_open else None


# an answer's stream, what writes it, and what to do when it has been read
_Written = tuple[Stream, Future[FinishReason], Callable[[], None]]


class Edge(_Front):
    """A draft model and a connection to a server. Use it as a context manager.

        with Edge(EdgeConfig(server="127.0.0.1:8400")) as edge:
            for text in edge.generate("Why is the sky blue?", temperature=0.7, seed=1):
                print(text, end="", flush=True)

    Any number of threads may ask at once, and code that runs in an event loop may as well.
    Raises ConfigError or ModelError for what the user can mend, ServerError when the server
    refuses, or is gone for longer than `reconnect_s`.
    """

    def __enter__(self) -> Edge:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def connect(self) -> None:
        """Greet the server, and load the draft model meanwhile."""
        connecting = self._connecting()
        try:
            connecting.result()
        except BaseException:
            connecting.cancel()
            raise

    def close(self) -> None:
        """Cancel what is being written and hang up; the edge cannot be used afterwards."""
        if (closing := self._closing()) is not None:
            closing.result()
            self._background.stop()

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Answer:
        """The answer to a prompt, or to messages with `role` and `content`, as it is written.

        With `raw` a prompt may also be a list of token ids.

        Options override those of the config for this answer; see `RequestOptions`. The text is as
        the model wrote it: give it to `terminal.inert` before a terminal sees it. Raises
        ConfigError for what cannot be asked, ServerError where the edge is not connected.
        """
        return Answer(*self._ask(prompt, options))

    def resume(self) -> Answer:
        """The answer in the resume file, from its beginning and to its end."""
        return Answer(*self._go_on())


class AsyncEdge(_Front):
    """`Edge` for asyncio.

    async with AsyncEdge(EdgeConfig(server="127.0.0.1:8400")) as edge:
        async for text in edge.generate("Why is the sky blue?"):
            print(text, end="", flush=True)
    """

    @classmethod
    def of(cls, edge: Edge) -> AsyncEdge:
        """An edge in its other form, with the same connection and draft; `edge` closes both."""
        other = cls.__new__(cls)
        vars(other).update(vars(edge))
        return other

    async def __aenter__(self) -> AsyncEdge:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Greet the server, and load the draft model meanwhile."""
        await asyncio.wrap_future(self._connecting())

    async def close(self) -> None:
        """Cancel what is being written and hang up; the edge cannot be used afterwards."""
        if (closing := self._closing()) is not None:
            await asyncio.wrap_future(closing)
            self._background.stop()

    def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> AsyncAnswer:
        """As `Edge.generate`, for `async for`."""
        return AsyncAnswer(*self._ask(prompt, options))

    def resume(self) -> AsyncAnswer:
        """The answer in the resume file, from its beginning and to its end."""
        return AsyncAnswer(*self._go_on())
