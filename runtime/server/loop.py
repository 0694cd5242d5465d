"""The server's loop: admit, choose, verify, answer.

Two activities and no others: the event loop reads and writes sockets and owns all sessions; one
worker thread runs the model. They meet in `verify_once`, which reads like the paper's figure.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from runtime.config import ServerConfig
from runtime.model.engine import Engine
from runtime.server.scheduler import Limits, Refused, Scheduler
from runtime.server.session import NO_NODES, RejectedDraft, Session
from runtime.server.verifier import Failed, Outcome, Prefilled, Verified, verify_batch
from runtime.wire import messages as wire
from runtime.wire.connection import Role
from runtime.wire.tcp import FramedProtocol

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What the handshake compares: both sides must mean the same text by the same ids."""

    model: str
    vocabulary_size: int
    vocabulary_hash: bytes
    max_context: int


@dataclass
class Totals:
    """Counts since the start, for the closing line."""

    steps: int = 0
    verdicts: int = 0
    tokens: int = 0
    busy_s: float = 0.0


@dataclass
class Server:
    """Sessions of all edges around one engine."""

    config: ServerConfig
    engine: Engine
    identity: Identity
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        config, kv = self.config, self.engine.kv
        limits = Limits(
            max_sessions=config.max_sessions,
            max_waiting=config.max_waiting,
            max_batch=config.max_batch,
            max_step_nodes=config.max_step_nodes,
            max_nodes=config.max_nodes,
            chunk_tokens=config.chunk_tokens,
            page_size=kv.page_size,
            n_pages=kv.n_free,
        )
        self.scheduler = Scheduler(limits, kv.allocate, kv.free)
        self._peers: set[FramedProtocol] = set()
        self._prompting: dict[tuple[FramedProtocol, int], tuple[wire.Open, list[int]]] = {}
        self._sessions: dict[tuple[FramedProtocol, int], Session] = {}
        self._work = asyncio.Event()
        self._draining = False
        self._idle = asyncio.Event()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, listener: asyncio.Server, announce: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM or SIGINT; `announce` is told the address once it is open.

        `listener` makes its protocols with `new_peer`.
        """
        stop = self._stop_on_signals()
        await listener.start_serving()
        announce(*listener.sockets[0].getsockname()[:2])
        verifying = asyncio.ensure_future(self._verify_forever())
        try:
            await asyncio.wait({verifying, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                await self._drain()
        finally:
            listener.close()
            verifying.cancel()
            for peer in list(self._peers):
                peer.close()
            self._model_thread.shutdown()
        if verifying.done() and not verifying.cancelled():
            verifying.result()

    # --- what the sockets bring ---

    def on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        """Apply one message of an edge; its order has been checked by the connection."""
        match message:
            case wire.Hello():
                self._greet(peer, message)
            case wire.Open():
                self._open(peer, message)
            case wire.Prompt():
                self._extend_prompt(peer, message)
            case wire.Draft():
                self._draft(peer, message)
            case wire.Close():
                self._forget(peer, message.session)

    def on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        """Free everything that a gone edge held."""
        log.info("%s left%s", peer.peer_name, f": {reason}" if reason else "")
        self._peers.discard(peer)
        for key in [key for key in (*self._sessions, *self._prompting) if key[0] is peer]:
            self._forget(*key)

    def new_peer(self) -> FramedProtocol:
        """A protocol for one more connection."""
        return FramedProtocol(Role.SERVER, self.on_message, self.on_closed)

    def _greet(self, peer: FramedProtocol, hello: wire.Hello) -> None:
        mine = self.identity
        if hello.version != wire.VERSION:
            sentence = f"this server speaks version {wire.VERSION} of the protocol, not {{}}"
            peer.refuse(wire.ErrorCode.VERSION, sentence.format(hello.version))
        elif hello.vocabulary_hash != mine.vocabulary_hash:
            peer.refuse(
                wire.ErrorCode.VOCABULARY,
                f"the draft {hello.model!r} ({hello.vocabulary_size} tokens) and the target "
                f"{mine.model!r} ({mine.vocabulary_size} tokens) have different vocabularies; "
                f"use a draft of the same family",
            )
        else:
            self._peers.add(peer)
            peer.send(
                wire.Welcome(
                    version=wire.VERSION,
                    vocabulary_size=mine.vocabulary_size,
                    max_nodes=self.config.max_nodes,
                    max_context=mine.max_context,
                    max_sessions=self.config.max_sessions + self.config.max_waiting,
                    model=mine.model,
                )
            )

    def _open(self, peer: FramedProtocol, message: wire.Open) -> None:
        room = self.identity.max_context - message.prompt_tokens
        if self._draining:
            self._refuse(peer, message.session, wire.ErrorCode.DRAINING, "the server is stopping")
        elif room < 1:
            self._refuse(
                peer,
                message.session,
                wire.ErrorCode.LIMIT,
                f"the prompt has {message.prompt_tokens} tokens, but the context of "
                f"{self.identity.model} holds {self.identity.max_context} with the answer",
            )
        else:
            self._prompting[peer, message.session] = (message, [])

    def _extend_prompt(self, peer: FramedProtocol, message: wire.Prompt) -> None:
        params, prompt = self._prompting[peer, message.session]
        prompt.extend(message.tokens)
        if len(prompt) < params.prompt_tokens:
            return
        del self._prompting[peer, message.session]
        session = Session(
            key=(peer, message.session),
            params=params,
            limit=min(len(prompt) + params.max_tokens, self.identity.max_context),
            context=prompt,
            ready_s=time.monotonic(),
        )
        try:
            self.scheduler.submit(session)
        except Refused as error:
            code = wire.ErrorCode.BUSY if error.busy else wire.ErrorCode.LIMIT
            self._refuse(peer, message.session, code, str(error))
            return
        self._sessions[peer, message.session] = session
        self._work.set()

    def _draft(self, peer: FramedProtocol, message: wire.Draft) -> None:
        session = self._sessions[peer, message.session]
        try:
            session.accept_draft(message, time.monotonic())
        except RejectedDraft as error:
            self._refuse(peer, message.session, wire.ErrorCode.PROTOCOL, str(error))
        self._work.set()

    def _refuse(
        self, peer: FramedProtocol, session: int, code: wire.ErrorCode, sentence: str
    ) -> None:
        """End one session with a sentence; the connection stays."""
        peer.send(wire.Error(session, code, fatal=False, sentence=sentence))
        self._forget(peer, session)

    def _forget(self, peer: FramedProtocol, number: int) -> None:
        self._prompting.pop((peer, number), None)
        session = self._sessions.pop((peer, number), None)
        if session is not None:
            self.scheduler.remove(session)
            self._work.set()  # its pages may admit someone who waits
        if not self._sessions and not self._prompting:
            self._idle.set()

    # --- what the model does ---

    async def _verify_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while await self.verify_once():
                pass

    async def verify_once(self) -> bool:
        """One step: choose, verify, answer. False when nothing was ready."""
        batch = self.scheduler.next_batch()
        if not batch:
            return False
        started_s = time.monotonic()
        outcomes = await asyncio.get_running_loop().run_in_executor(
            self._model_thread, verify_batch, self.engine, batch
        )
        step_s = time.monotonic() - started_s
        self.totals.steps += 1
        self.totals.busy_s += step_s
        for outcome in outcomes:
            self._deliver(outcome, started_s, step_s)
        return True

    def _deliver(self, outcome: Outcome, started_s: float, step_s: float) -> None:
        """Apply an outcome to its session, unless the edge has gone meanwhile."""
        session = outcome.session
        peer, number = session.key
        if self._sessions.get(session.key) is not session:
            return
        match outcome:
            case Prefilled(count=count):
                session.cached += count
            case Failed(sentence=sentence):
                self._refuse(peer, number, wire.ErrorCode.INTERNAL, sentence)
            case Verified(path=path, bonus=bonus):
                queue_s = started_s - session.ready_s
                verdict = self._verdict(session, path, bonus, queue_s, step_s)
                peer.send(verdict)
                if verdict.finish:
                    self._forget(peer, number)
                elif verdict.turn is wire.Turn.SERVER:
                    session.draft, session.ready_s = NO_NODES, time.monotonic()

    def _verdict(
        self, session: Session, path: list[int], bonus: int, queue_s: float, step_s: float
    ) -> wire.Verdict:
        """Commit the walk to the session and tell it to the edge."""
        assert session.draft is not None, "a verdict without a draft"
        round_number = session.round
        drafted = [session.draft.tokens[node - 1] for node in path[1:]]
        accepted, finish = session.advance(drafted, bonus)
        self.totals.verdicts += 1
        self.totals.tokens += accepted + 1
        most_nodes = min(session.params.max_nodes, self.config.max_nodes)
        drafts = most_nodes > 0 and not finish
        return wire.Verdict(
            session=session.params.session,
            round=round_number,
            node=path[accepted],
            bonus=session.context[-1],
            finish=finish,
            queue_ms=wire.clamp_ms(queue_s * 1e3),
            verify_ms=wire.clamp_ms(step_s * 1e3),
            turn=wire.Turn.EDGE if drafts else wire.Turn.SERVER,
            max_nodes=most_nodes if drafts else 0,
        )

    # --- stopping ---

    def _stop_on_signals(self) -> "asyncio.Future[None]":
        """Done at the first SIGTERM or SIGINT; the second one stops at once."""
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[None] = loop.create_future()

        def on_signal() -> None:
            if stop.done():
                self._stop_now()
            else:
                stop.set_result(None)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        return stop

    def _stop_now(self) -> None:
        for key in [*self._sessions, *self._prompting]:
            self._forget(*key)

    async def _drain(self) -> None:
        """Let running requests end, at most `drain_s` seconds; admit no new ones."""
        self._draining = True
        if self._sessions or self._prompting:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.config.drain_s)
