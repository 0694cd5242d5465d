"""The server's loop: admit, choose, verify, answer.

Two activities and no others: the event loop reads and writes sockets and owns all sessions; one
worker thread runs the model. They meet in `verify_once`, which reads like the paper's figure.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TextIO

from runtime.config import ServerConfig
from runtime.logs import fields
from runtime.model.engine import Engine
from runtime.server.credits import POLICIES
from runtime.server.door import Door
from runtime.server.metrics import Metrics, label
from runtime.server.pipeline import Grant, Pipeline
from runtime.server.scheduler import Limits, Refused, Scheduler
from runtime.server.session import NO_NODES, RejectedDraft, Session
from runtime.server.trace import Step
from runtime.server.verifier import Failed, Outcome, Prefilled, Verified, verify_batch
from runtime.system import on_stop
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0  # of an idle server; inf is not a time-out
NO_GRANT = Grant(wire.Turn.SERVER)


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
    door: Door
    trace: TextIO | None = None  # gets a line for every step
    metrics: Metrics = field(default_factory=Metrics)
    totals: Totals = field(default_factory=Totals)
    unready: str = "the port is not open yet"  # why no requests are taken; empty if they are

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
        self.pipeline = Pipeline(
            config.max_batch, config.max_step_nodes, POLICIES[config.credits](), config.pipeline
        )
        self.metrics.watch(self.door, self.scheduler, self.pipeline)
        self._rtt_s: dict[FramedProtocol, float] = {}
        # Requests by peer and number: whose they are, then in one of the two states.
        self._user_of: dict[tuple[FramedProtocol, int], str] = {}
        self._requests_of: Counter[str] = Counter()
        self._prompting: dict[tuple[FramedProtocol, int], tuple[wire.Open, list[int]]] = {}
        self._sessions: dict[tuple[FramedProtocol, int], Session] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, listener: asyncio.Server, announce: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM or SIGINT; `announce` is told the address once it is open.

        `listener` makes its protocols with `new_peer`.
        """
        stop = self._stop_on_signals()
        await listener.start_serving()
        self.unready = ""
        announce(*listener.sockets[0].getsockname()[:2])
        verifying = asyncio.ensure_future(self._verify_forever())
        try:
            await asyncio.wait({verifying, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                await self._drain()
        finally:
            listener.close()
            verifying.cancel()
            for peer in self.door.peers():
                peer.close()
            self._model_thread.shutdown()
        if verifying.done() and not verifying.cancelled():
            verifying.result()

    # --- what the sockets bring ---

    def on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        """Apply one message of an edge; its order has been checked by the connection."""
        match message:
            case wire.Hello() | wire.Proof():
                self.door.answer(peer, message, time.monotonic())
                if peer in self.door.admitted:
                    log.info("edge admitted", extra=self._who(peer))
                    peer.send(wire.Ping(time.monotonic_ns()))
            case wire.Pong(nonce=sent_ns):
                self._rtt_s[peer] = (time.monotonic_ns() - sent_ns) * 1e-9
                self.metrics.pong(self._rtt_s[peer])
            case wire.Open():
                self._open(peer, message)
            case wire.Prompt():
                self._extend_prompt(peer, message)
            case wire.Draft():
                self._draft(peer, message)
            case wire.Close():
                log.info("request cancelled", extra=self._who(peer, message.session))
                self._forget(peer, message.session)

    def on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        """Free everything that a gone edge held."""
        level = logging.INFO if peer.ended_with is None else logging.WARNING
        log.log(level, "edge left", extra=self._who(peer, code=peer.ended_with, reason=reason))
        self.metrics.edge_left(peer)
        self.door.left(peer)
        self._rtt_s.pop(peer, None)
        for key in [key for key in self._keys() if key[0] is peer]:
            self._forget(*key)

    def new_peer(self) -> FramedProtocol:
        """A protocol for one more connection."""
        return self.door.new_peer(self.on_message, self.on_closed)

    def _open(self, peer: FramedProtocol, message: wire.Open) -> None:
        identity, user = self.door.identity, self.door.admitted[peer]
        room = identity.max_context - message.prompt_tokens
        of_user = self._requests_of[user]
        if self.unready:
            self._refuse(peer, message.session, wire.ErrorCode.DRAINING, self.unready)
        elif room < 1:
            self._refuse(
                peer,
                message.session,
                wire.ErrorCode.LIMIT,
                f"the prompt has {message.prompt_tokens} tokens, but the context of "
                f"{identity.model} holds {identity.max_context} with the answer",
            )
        elif of_user >= self.config.max_user_sessions:
            sentence = f"{of_user} of your requests are running, as many as one user may have"
            self._refuse(peer, message.session, wire.ErrorCode.BUSY, sentence)
        else:
            self._prompting[peer, message.session] = (message, [])
            self._user_of[peer, message.session] = user
            self._requests_of[user] += 1

    def _extend_prompt(self, peer: FramedProtocol, message: wire.Prompt) -> None:
        params, prompt = self._prompting[peer, message.session]
        prompt.extend(message.tokens)
        if len(prompt) < params.prompt_tokens:
            return
        del self._prompting[peer, message.session]
        session = Session(
            key=(peer, message.session),
            params=params,
            limit=min(len(prompt) + params.max_tokens, self.door.identity.max_context),
            context=prompt,
            target_stop_ids=self.door.identity.stop_ids,
            tenant=self.door.admitted[peer],
            ready_s=time.monotonic(),
        )
        try:
            self.scheduler.submit(session)
        except Refused as error:
            code = wire.ErrorCode.BUSY if error.busy else wire.ErrorCode.LIMIT
            self._refuse(peer, message.session, code, str(error))
            return
        self._sessions[peer, message.session] = session
        self.metrics.prompted(len(prompt))
        nodes = min(params.max_nodes, self.config.max_nodes)
        rtt_s, user = self._rtt_s.get(peer), session.tenant
        self.pipeline.opened(session.key, nodes, rtt_s, session.ready_s, user)
        self._work.set()

    def _draft(self, peer: FramedProtocol, message: wire.Draft) -> None:
        session = self._sessions[peer, message.session]
        try:
            session.accept_draft(message, time.monotonic())
        except RejectedDraft as error:
            self._refuse(peer, message.session, wire.ErrorCode.PROTOCOL, str(error))
        else:
            nodes, draft_s = len(message.tokens), message.draft_ms * 1e-3
            self.scheduler.drafted(session)
            self.pipeline.draft_arrived(session.key, nodes, draft_s, session.ready_s)
        self._work.set()

    def _keys(self) -> list[tuple[FramedProtocol, int]]:
        """Of all requests, those that are still being read included."""
        return [*self._user_of]

    def _refuse(
        self, peer: FramedProtocol, session: int, code: wire.ErrorCode, sentence: str
    ) -> None:
        """End one session with a sentence; the connection stays."""
        about = self._who(peer, session, code=code, reason=sentence)
        log.warning("request refused", extra=about)
        self.metrics.refused(code)
        peer.send(wire.Error(session, code, fatal=False, sentence=sentence))
        self._forget(peer, session)

    def _forget(self, peer: FramedProtocol, number: int) -> None:
        user = self._user_of.pop((peer, number), None)
        if user is None:
            return
        self._requests_of[user] -= 1
        self._prompting.pop((peer, number), None)
        session = self._sessions.pop((peer, number), None)
        if session is not None:
            self.scheduler.remove(session)
            self.pipeline.closed(session.key)
            self._work.set()  # its pages may admit someone who waits
        if not self._user_of:
            self._idle.set()

    def _who(
        self,
        peer: FramedProtocol,
        session: int | None = None,
        code: wire.ErrorCode | None = None,
        **more: object,
    ) -> dict[str, object]:
        """The fields of a log line about a peer, or about one of its requests."""
        user = self.door.admitted.get(peer) or None
        code_name = None if code is None else label(code)
        return fields(peer=peer.peer_name, user=user, session=session, code=code_name, **more)

    # --- what the model does ---

    async def _verify_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Credits of edges that have fallen silent come free at a known time.
            patience_s = max(self.pipeline.wake_s - time.monotonic(), 0.0)
            # not wait_for: before Python 3.12 it may swallow a cancellation
            timer = loop.call_later(min(patience_s, LONGEST_WAIT_S), self._work.set)
            await self._work.wait()
            timer.cancel()
            self._work.clear()
            self._give_credits()
            while await self.verify_once():
                pass

    async def verify_once(self) -> bool:
        """One step: choose, verify, answer. False when nothing was ready."""
        batch = self.scheduler.next_batch()
        if not batch:
            self.pipeline.stalled()
            self._give_credits()
            return False
        step = Step.of(batch, time.monotonic())
        self.pipeline.step_started(step.drafted, step.rows, step.chunk_rows, step.start_s)
        self._give_credits()
        outcomes = await asyncio.get_running_loop().run_in_executor(
            self._model_thread, verify_batch, self.engine, batch
        )
        step.end_s = time.monotonic()
        self._learn(step, outcomes)
        for outcome in outcomes:
            self._deliver(outcome, step)
        self._give_credits()
        return True

    def _learn(self, step: Step, outcomes: Sequence[Outcome]) -> None:
        """Let a finished step be counted, before its verdicts are told."""
        for outcome in outcomes:
            if isinstance(outcome, Verified):
                step.accepted[outcome.session.key] = len(outcome.path) - 1
        self.pipeline.step_ended(
            len(step.drafted), step.rows, step.chunk_rows, step.tokens, step.seconds, step.end_s
        )
        self.metrics.step_ended(len(step.drafted), step.seconds)
        self.totals.steps += 1
        self.totals.busy_s += step.seconds
        if self.trace is not None:
            print(step.line(), file=self.trace)

    def _deliver(self, outcome: Outcome, step: Step) -> None:
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
                verdict = self._verdict(session, path, bonus, step)
                peer.send(verdict)
                if verdict.finish:
                    tokens = len(session.context) - session.params.prompt_tokens
                    about = self._who(peer, number, finish=label(verdict.finish), tokens=tokens)
                    log.info("request ended", extra=about)
                    self._forget(peer, number)
                elif verdict.turn is wire.Turn.SERVER:
                    session.draft, session.ready_s = NO_NODES, time.monotonic()

    def _verdict(self, session: Session, path: list[int], bonus: int, step: Step) -> wire.Verdict:
        """Commit the walk to the session and say what follows."""
        assert session.draft is not None, "a verdict without a draft"
        round_number = session.round
        drafted = [session.draft.tokens[node - 1] for node in path[1:]]
        nodes, now_s = len(session.draft), time.monotonic()
        accepted, finish = session.advance(drafted, bonus)
        self.metrics.verdict(session, nodes, accepted, now_s)
        session.verdict_s = now_s
        self.totals.verdicts += 1
        self.totals.tokens += accepted + 1
        grant = NO_GRANT
        if not finish:
            grant = self.pipeline.after_verdict(session.key, accepted, now_s)
        return wire.Verdict(
            session=session.params.session,
            round=round_number,
            node=path[accepted],
            bonus=session.context[-1],
            finish=finish,
            queue_ms=wire.clamp_ms((step.start_s - session.ready_s) * 1e3),
            verify_ms=wire.clamp_ms(step.seconds * 1e3),
            turn=grant.turn,
            max_nodes=grant.max_nodes,
            draft_ms=wire.clamp_ms(grant.draft_s * 1e3),
            late_ms=wire.clamp_ms(grant.late_s * 1e3),
        )

    def _give_credits(self) -> None:
        """Tell edges that wait for a credit that they may send."""
        for (peer, number), grant in self.pipeline.credits_due(time.monotonic()):
            times_ms = [wire.clamp_ms(time_s * 1e3) for time_s in (grant.draft_s, grant.late_s)]
            peer.send(wire.Credit(number, grant.max_nodes, *times_ms))

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

        on_stop(loop, on_signal)
        return stop

    def _stop_now(self) -> None:
        for key in self._keys():
            self._forget(*key)

    async def _drain(self) -> None:
        """Let running requests end, at most `drain_s` seconds; admit no new ones."""
        self.unready = "the server is stopping"
        log.info("draining", extra=fields(requests=len(self._keys()), drain_s=self.config.drain_s))
        notice = wire.Error(0, wire.ErrorCode.DRAINING, fatal=False, sentence=self.unready)
        for peer in self.door.admitted:
            peer.send(notice)
        if self._user_of:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.config.drain_s)
