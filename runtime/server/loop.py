"""The server's loop: admit, choose, verify, answer.

Two activities and no others: the event loop reads and writes sockets and owns all requests; one
thread runs the model (model_thread.py). They meet in `steps.py`.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.config import ConfigError, ServerConfig
from runtime.logs import fields
from runtime.model.batch import NO_ADAPTER
from runtime.model.config import ModelError
from runtime.model.engine import Engine
from runtime.named import named
from runtime.server.door import Door, Identity
from runtime.server.guide import Guides
from runtime.server.metrics import Metrics, label
from runtime.server.policy.credits import POLICIES, Credits
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Rate
from runtime.server.policy.pipeline import Grant, Pipeline
from runtime.server.pulse import LOOK_S, Pulse
from runtime.server.request import NO_NODES, Phase, RejectedDraft, Request
from runtime.server.schedule.scheduler import Limits, Refused, Scheduler
from runtime.server.schedule.step import Step
from runtime.server.spilling import Spilling
from runtime.server.steps import Steps
from runtime.server.verify.logprobs import message as logprobs_message
from runtime.server.verify.verifier import Failed, Outcome, Verified
from runtime.system import on_stop
from runtime.wire import messages as wire
from runtime.wire.places import Listener
from runtime.wire.tcp import CLOSE_TIMEOUT_S, FramedProtocol

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 3600.0  # of an idle server; inf is not a time-out
# Two threads share the interpreter: the model's may have to wait so long for the loop's.
SWITCH_S = 0.0005
# A draft model may take minutes for a long prompt; meanwhile its edge answers Pings.
DRAFTING_SILENCES = 10
DEVICE_FAILURES = 3  # in a row; a fault of a GPU's context stays as long as its process
TOLD_ADAPTERS = 3  # in a sentence, which has room for few
TELL_LOOKS = 5  # between two words to those who wait in line
NO_GRANT = Grant(wire.Turn.SERVER)
REVOKED = "the token that this edge came with holds no more"


class DeviceError(Exception):
    """The device fails whatever it is given; the message is for the operator."""


@dataclass
class Totals:
    """Counts since the start, for the closing line."""

    steps: int = 0
    verdicts: int = 0
    tokens: int = 0
    busy_s: float = 0.0


def credits_of(config: ServerConfig) -> Credits:
    """The policy of --credits. Raises ConfigError where a class is named that there is not."""
    policy = POLICIES.get(config.credits) or named(config.credits, "--credits")
    credits = policy()
    if not isinstance(credits, Credits):
        raise ConfigError(f"--credits {config.credits}: expected a subclass of Credits")
    return credits


@dataclass
class Server:
    """Requests of all edges around one engine."""

    config: ServerConfig
    engine: Engine
    door: Door
    on_step: Callable[[Step], None] = lambda step: None  # is told of each that has ended
    metrics: Metrics = field(default_factory=Metrics)
    guides: Guides | None = None  # None enforces no constraints
    spilling: Spilling | None = None  # None keeps no pages that the KV pool gives up
    totals: Totals = field(default_factory=Totals)
    unready: str = "the port is not open yet"  # why no requests are taken; empty if they are

    def __post_init__(self) -> None:
        config, kv = self.config, self.engine.kv
        limits = Limits(
            max_requests=config.max_requests,
            max_user_running=self._most_of_a_user(),
            max_waiting=config.max_waiting,
            max_batch=config.max_batch,
            max_step_nodes=config.max_step_nodes,
            max_nodes=config.max_nodes,
            chunk_tokens=config.chunk_tokens,
            page_size=kv.page_size,
            n_pages=kv.n_free,
        )
        spill = self.spilling.spill if self.spilling is not None else None
        self.scheduler = Scheduler(limits, kv.allocate, kv.free, spill)
        credits, objective_s = credits_of(config), config.objective_ms * 1e-3 or math.inf
        limits_of_steps = (config.max_batch, config.max_step_nodes)
        self.pipeline = Pipeline(*limits_of_steps, credits, config.pipeline, objective_s)
        self.metrics.watch(self.door, self.scheduler, self.pipeline)
        self.requests: dict[tuple[FramedProtocol, int], Request] = {}  # by peer and number
        self._adapters_of_users = config.adapters_of_users
        self._pulses: dict[FramedProtocol, Pulse] = {}
        self._known: dict[FramedProtocol, EdgeProfile] = {}  # from the last request that drafted
        self._requests_of: Counter[Hashable] = Counter()  # by user
        self._leaving = Rate()  # requests that give a place free
        self._left = 0  # of these, since the last look
        self._preparing: set[asyncio.Future[None]] = set()  # requests that are not in line yet
        self._device_failures = 0  # since the last verdict
        self._work = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self.steps = Steps(self.engine, self.scheduler, self.pipeline, self._answer, self._work)

    def _most_of_a_user(self) -> int:
        """Requests of one user that may be admitted at once."""
        all_of_them, users = self.config.max_requests, self.door.users
        fair = all_of_them if users is None or len(users) < 2 else max(all_of_them // 2, 1)
        return self.config.max_user_running or fair

    async def run(self, listener: Listener, announce: Callable[[str, int], None]) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; `announce` is told the address once it is open.

        `listener` makes its protocols with `new_peer`. Raises DeviceError.
        """
        on_stop(asyncio.get_running_loop(), self.stop)
        stop, left_s = asyncio.ensure_future(self._stopping.wait()), CLOSE_TIMEOUT_S
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        await listener.start_serving()
        self.unready = ""
        announce(*listener.sockets[0].getsockname()[:2])
        verifying = asyncio.ensure_future(self._verify_forever())
        looking = asyncio.ensure_future(self._look_forever())
        try:
            await asyncio.wait({verifying, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                left_s = await self._drain()
        finally:
            listener.close()
            verifying.cancel()
            looking.cancel()
            stop.cancel()
            try:  # an edge may be slow to take the last of its answer
                await asyncio.gather(*(peer.hang_up(left_s) for peer in self.door.peers()))
            finally:
                self.steps.stop()
                if self.guides is not None:
                    self.guides.close()
                if self.spilling is not None:
                    self.spilling.close()
                sys.setswitchinterval(switch_s)
        if verifying.done() and not verifying.cancelled():
            verifying.result()

    def renew(self, users: Mapping[str, bytes] | None, certificate: bytes) -> None:
        """Users and their tokens, and the certificate's hash, as they are from now on.

        Answers that have begun go on to their ends, whoever's they are.
        """
        for peer in self.door.renew(users, certificate):
            self._send_off(peer)

    def _send_off(self, peer: FramedProtocol) -> None:
        """Hang up on an edge whose token holds no more, once it has no answer."""
        if not any(request.key[0] is peer for request in self.requests.values()):
            peer.refuse(wire.ErrorCode.AUTHENTICATION, REVOKED)

    # --- what the sockets bring ---

    def on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        """Apply one message of an edge; its order has been checked by the connection."""
        match message:
            case wire.Draft():
                self._draft(peer, message)
            case wire.Hello() | wire.Proof():
                self.door.answer(peer, message, time.monotonic())
                if peer in self.door.admitted:
                    log.info("edge admitted", extra=self._who(peer))
                    self._pulses[peer] = Pulse()
                    self._known[peer] = EdgeProfile()
            case wire.Pong():
                self.metrics.pong(self._pulses[peer].answered(time.monotonic()))
            case wire.Open():
                self._open(peer, message)
            case wire.Rule():
                self.requests[peer, message.request].rule = message
            case wire.Constraint():
                self.requests[peer, message.request].constraint = message
            case wire.Adapter():
                self._adapt(peer, message)
            case wire.Prompt():
                self._extend_prompt(peer, message)
            case wire.Close():
                log.info("request cancelled", extra=self._who(peer, message.request))
                if request := self.requests.get((peer, message.request)):
                    self._cancel(request)

    def on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        """Free everything that a gone edge held."""
        is_fine = peer.ended_with is None and not peer.cut_bytes
        level = logging.INFO if is_fine else logging.WARNING
        log.log(level, "edge left", extra=self._who(peer, code=peer.ended_with, reason=reason))
        self.metrics.edge_left(peer)
        self.door.left(peer)
        self._pulses.pop(peer, None)
        self._known.pop(peer, None)
        for request in [r for r in self.requests.values() if r.key[0] is peer]:
            self._cancel(request)

    def new_peer(self) -> FramedProtocol:
        """A protocol for one more connection."""
        return self.door.new_peer(self.on_message, self.on_closed)

    def _open(self, peer: FramedProtocol, message: wire.Open) -> None:
        self.metrics.opened()
        identity, user = self.door.identity, self.door.admitted[peer]
        assert identity is not None, "a request where there is no model"
        room = identity.max_context - message.prompt_tokens
        if peer in self.door.revoked:
            self._refuse(peer, message.request, wire.ErrorCode.AUTHENTICATION, REVOKED)
            return
        if refusal := self._refusal(identity, user, message.prompt_tokens):
            self._refuse(peer, message.request, *refusal)
            return
        self.requests[peer, message.request] = Request(
            key=(peer, message.request),
            params=message,
            limit=message.prompt_tokens + min(message.max_tokens, room),
            context=[],
            user=user,
            target_stop_ids=identity.stop_ids,
            adapter=self._adapter_of(user, identity),
            opened_s=time.monotonic(),
            edge=self._known[peer].at_next_request(min(message.max_nodes, self.config.max_nodes)),
        )
        self._requests_of[user] += 1
        self._ask(peer)

    def _adapter_of(self, user: str, identity: Identity) -> int:
        """Which adapter the requests of a user have that name none."""
        name = self._adapters_of_users.get(user)
        return NO_ADAPTER if name is None else identity.adapters.index(name)

    def _adapt(self, peer: FramedProtocol, message: wire.Adapter) -> None:
        identity = self.door.identity
        assert identity is not None, "a request where there is no model"
        if message.name in identity.adapters:
            request = self.requests[peer, message.request]
            request.adapter = identity.adapters.index(message.name)
            return
        some = ", ".join(identity.adapters[:TOLD_ADAPTERS]) or "none"
        more = " and others" if identity.adapters[TOLD_ADAPTERS:] else ""
        sentence = f"{identity.model} has no adapter {message.name!r} here; it has {some}{more}"
        self._refuse(peer, message.request, wire.ErrorCode.ADAPTER, sentence)

    def _refusal(
        self, identity: Identity, user: str, prompt_tokens: int
    ) -> tuple[wire.ErrorCode, str] | None:
        """Why no request with such a prompt is taken from this user, if it is not."""
        of_user = self._requests_of[user]
        if self.unready:
            return wire.ErrorCode.DRAINING, self.unready
        if prompt_tokens >= identity.max_context:
            return wire.ErrorCode.LIMIT, (
                f"the prompt has {prompt_tokens} tokens, but the context of {identity.model} "
                f"holds {identity.max_context} with the answer"
            )
        if of_user >= self.config.max_user_requests:
            sentence = f"{of_user} of your requests are running, as many as one user may have"
            return wire.ErrorCode.BUSY, sentence
        return None

    def _extend_prompt(self, peer: FramedProtocol, message: wire.Prompt) -> None:
        request = self.requests[peer, message.request]
        is_whole = request.read(message.tokens)
        self.scheduler.reading(request)
        if not is_whole:
            return
        request.ready_s = time.monotonic()
        self.pipeline.opened(request, request.ready_s)
        if request.constraint is None and self.spilling is None:
            self._submit(request)
        else:
            preparing = asyncio.ensure_future(self._prepare(request))
            self._preparing.add(preparing)
            preparing.add_done_callback(self._preparing.discard)

    async def _prepare(self, request: Request) -> None:
        """Do what may take a while, and then let a request in line."""
        if request.constraint is not None:
            await self._guide(request, request.constraint)
        if self.spilling is not None and not request.ended:
            await self.spilling.fetch(self.scheduler.cache.beyond(request.page_keys))
        if not request.ended:
            self._submit(request)

    async def _guide(self, request: Request, constraint: wire.Constraint) -> None:
        """Have a constraint compiled; a request whose constraint is none is refused."""
        peer, number = request.key
        try:
            if self.guides is None:
                raise ValueError("this server enforces no constraints")
            guide = await self.guides.guide(constraint, request.answer)
        except (ValueError, ModelError) as error:
            if not request.ended:
                self._refuse(peer, number, wire.ErrorCode.CONSTRAINT, str(error))
        else:
            if not request.ended:
                request.guide = guide
                self._lined_up(request)

    def _lined_up(self, request: Request) -> None:
        """Let its draft wait for a step, once it is known what a constraint allows there.

        A constraint that takes long to be walked holds up its own request, and no step of others.
        """
        if request.guide is None:
            self.scheduler.drafted(request)
            return
        loop = asyncio.get_running_loop()

        def tell(masks: object) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._masks_came, request)

        request.await_masks().add_done_callback(tell)

    def _masks_came(self, request: Request) -> None:
        request.masks_came()
        if not request.ended:
            self.scheduler.drafted(request)
            self._work.set()

    def _submit(self, request: Request) -> None:
        """Let a request that has been read in line."""
        peer, number = request.key
        try:
            self.scheduler.submit(request)
        except Refused as error:
            code = wire.ErrorCode.BUSY if error.busy else wire.ErrorCode.LIMIT
            self._refuse(peer, number, code, str(error))
        else:
            self.metrics.prompted(len(request.context))
            self._work.set()

    def _draft(self, peer: FramedProtocol, message: wire.Draft) -> None:
        request = self.requests[peer, message.request]
        try:
            request.accept_draft(message, time.monotonic())
        except RejectedDraft as error:
            self._refuse(peer, message.request, wire.ErrorCode.PROTOCOL, str(error))
        else:
            self._pulses[peer].drafted()
            self._lined_up(request)
            self.pipeline.draft_arrived(request, message.draft_ms * 1e-3, request.ready_s)
        self._work.set()

    def _ask(self, peer: FramedProtocol) -> None:
        """Send a Ping, unless one is under way."""
        if self._pulses[peer].may_ask():
            self._pulses[peer].asked(time.monotonic())
            peer.send(wire.Ping(0))

    # --- what does not come ---

    async def _look_forever(self) -> None:
        for count in itertools.count(1):
            await asyncio.sleep(LOOK_S)
            self._look()
            if count % TELL_LOOKS == 0:
                self._tell_line()

    def _look(self) -> None:
        """End what edges hold that are silent, or that owe something for too long."""
        silence_s = self.config.silence_s
        for peer in {request.key[0]: None for request in self.requests.values()}:
            self._pulses[peer].look(peer.bytes_received)
            if self._pulses[peer].silent_s >= silence_s:
                sentence = f"nothing has come from this edge for {silence_s:g} s"
                peer.refuse(wire.ErrorCode.TIMEOUT, sentence)
            elif not self._pulses[peer].has_drafted:
                self._ask(peer)
        for request in [*self.requests.values()]:
            request.look(LOOK_S)
            is_reading = request.phase is Phase.READING
            most_s = silence_s if is_reading else DRAFTING_SILENCES * silence_s
            if request.owed_s >= most_s:
                what = "the rest of its prompt" if is_reading else "its draft"
                sentence = f"{what} has not come for {most_s:g} s"
                peer, number = request.key
                self._refuse(peer, number, wire.ErrorCode.TIMEOUT, sentence)
        self._leaving.observe(self._left, LOOK_S)
        self._left = 0

    def _tell_line(self) -> None:
        """Tell edges whose requests wait for a place where they stand, and for how long."""
        places: dict[FramedProtocol, list[int]] = {}
        for place, request in enumerate(self.scheduler.waiting, start=1):
            places.setdefault(request.key[0], []).append(place)
        for peer, mine in places.items():
            sentence = f"{len(mine)} of your requests wait, the first as number {mine[0]} in line"
            if self._leaving.per_s:
                sentence += f": about {math.ceil(mine[0] / self._leaving.per_s)} s"
            peer.send(wire.Error(0, wire.ErrorCode.BUSY, fatal=False, sentence=sentence))

    def _refuse(
        self, peer: FramedProtocol, number: int, code: wire.ErrorCode, sentence: str
    ) -> None:
        """End one request, opened or not, with a sentence; the connection stays."""
        about = self._who(peer, number, code=code, reason=sentence)
        log.warning("request refused", extra=about)
        self.metrics.refused(code)
        peer.send(wire.Error(number, code, fatal=False, sentence=sentence))
        if request := self.requests.get((peer, number)):
            self._end(request)

    def _cancel(self, request: Request) -> None:
        """End a request that nobody asks for any more."""
        self.metrics.cancelled()
        self._end(request)

    def _end(self, request: Request) -> None:
        """Forget a request, in whatever phase it is."""
        if request.in_steps:
            self.steps.recall()
        del self.requests[request.key]
        self._requests_of[request.user] -= 1
        self._left += request.admitted
        peer, _ = request.key
        if peer in self._known and request.edge.max_nodes:
            self._known[peer] = request.edge
        if request.phase is not Phase.READING:
            self.pipeline.closed(request)
        self.scheduler.remove(request)
        if peer in self.door.revoked:
            self._send_off(peer)
        self._work.set()  # its pages may admit someone who waits
        if not self.requests:
            self._idle.set()

    def _who(
        self,
        peer: FramedProtocol,
        number: int | None = None,
        code: wire.ErrorCode | None = None,
        **more: object,
    ) -> dict[str, object]:
        """The fields of a log line about a peer, or about one of its requests."""
        user = self.door.admitted.get(peer) or None
        code_name = None if code is None else label(code)
        return fields(peer=peer.peer_name, user=user, request=number, code=code_name, **more)

    # --- what the model does ---

    async def _verify_forever(self) -> None:
        loop = asyncio.get_running_loop()
        self.steps.start()
        while True:
            # Credits of edges that have fallen silent come free at a known time.
            patience_s = min(self.pipeline.wake_s, self.steps.wake_s) - time.monotonic()
            # not wait_for: before Python 3.12 it may swallow a cancellation
            timer = loop.call_later(min(max(patience_s, 0.0), LONGEST_WAIT_S), self._work.set)
            await self._work.wait()
            timer.cancel()
            self._work.clear()
            self._give_credits()
            self.steps.turn()
            self._give_credits()

    def _answer(self, step: Step, outcomes: Sequence[Outcome]) -> None:
        """Count a step that is over, and give its verdicts."""
        self.metrics.step_ended(len(step.drafted), step.seconds)
        for request in [work.request for work in step.work if not work.request.stepped]:
            request.stepped = True
            self.metrics.first_step(request, step.start_s)
        self.totals.steps += 1
        self.totals.busy_s += step.seconds
        self.on_step(step)
        self._tell_reading(step)
        for outcome in outcomes:
            was_there = not outcome.request.ended  # else its step before has failed, and counted
            self._deliver(outcome, step)
            if was_there:
                self._judge_device(outcome)
        self._give_credits()

    def _tell_reading(self, step: Step) -> None:
        """Tell edges how much of their prompts the step leaves in the cache."""
        for work in step.work:
            request = work.request
            if request.round == 0 and not request.ended:
                peer, number = request.key
                read = work.start + work.chunk + work.verify
                peer.send(wire.Reading(number, request.found, read))

    def _judge_device(self, outcome: Outcome) -> None:
        """Raise DeviceError where no step succeeds any more, whoever's it is."""
        if isinstance(outcome, Verified):
            self._device_failures = 0
        elif outcome.by_device:
            self._device_failures += 1
            if self._device_failures == DEVICE_FAILURES:
                self.unready = "the device fails"
                sentence = f"the device failed {DEVICE_FAILURES} times in a row"
                raise DeviceError(f"{sentence}; the last time {outcome.sentence}")

    def _deliver(self, outcome: Outcome, step: Step) -> None:
        """Apply an outcome to its request, unless that has ended meanwhile."""
        request = outcome.request
        if request.ended:
            return
        peer, number = request.key
        if isinstance(outcome, Failed):
            self._refuse(peer, number, wire.ErrorCode.INTERNAL, outcome.sentence)
            return
        verdict = self._verdict(request, outcome, step)
        if outcome.logprobs:
            tokens = 1 + outcome.path.index(verdict.node)
            peer.send(logprobs_message(number, outcome.logprobs[:tokens]))
        peer.send(verdict)
        if verdict.finish:
            tokens = len(request.context) - request.params.prompt_tokens
            about = self._who(peer, number, finish=label(verdict.finish), tokens=tokens)
            log.info("request ended", extra=about)
            self._end(request)
        elif verdict.turn is wire.Turn.SERVER:
            request.line_up(NO_NODES, time.monotonic())
            if not request.verifying:  # else it is in the next step already
                self._lined_up(request)

    def _verdict(self, request: Request, outcome: Verified, step: Step) -> wire.Verdict:
        """Commit the walk to the request and say what follows."""
        assert request.draft is not None, "a verdict without a draft"
        round_number, ready_s = request.round, request.ready_s
        draft, now_s = request.draft, time.monotonic()
        accepted, finish = outcome.commit()
        ranks = draft.ranks(outcome.path[1 : accepted + 1])
        self.scheduler.verified(request)
        self.metrics.verdict(request, len(draft), accepted, now_s)
        request.verdict_s = now_s
        if (rtt_s := self._pulses[request.key[0]].rtt_s) is not None:
            request.edge.pinged(rtt_s)
        self.totals.verdicts += 1
        self.totals.tokens += accepted + 1
        grant = NO_GRANT if finish else self.pipeline.after_verdict(request, ranks, now_s)
        return wire.Verdict(
            request=request.params.request,
            round=round_number,
            node=outcome.path[accepted],
            bonus=request.context[-1],
            finish=finish,
            queue_ms=wire.clamp_ms((step.start_s - ready_s) * 1e3),
            verify_ms=wire.clamp_ms(step.seconds * 1e3),
            turn=grant.turn,
            max_nodes=grant.max_nodes,
            free_ms=wire.clamp_ms(grant.free_s * 1e3),
            late_ms=wire.clamp_ms(grant.late_s * 1e3),
        )

    def _give_credits(self) -> None:
        """Tell edges that wait for a credit that they may send."""
        for request, grant in self.pipeline.credits_due(time.monotonic()):
            peer, number = request.key
            times_ms = [wire.clamp_ms(time_s * 1e3) for time_s in (grant.free_s, grant.late_s)]
            peer.send(wire.Credit(number, grant.max_nodes, *times_ms))

    # --- stopping ---

    def stop(self) -> None:
        """What SIGTERM does: the first time running requests may end, the second time they may not.

        To be called in the event loop.
        """
        if self._stopping.is_set():
            self._stop_now()
        self._stopping.set()

    def _stop_now(self) -> None:
        for request in [*self.requests.values()]:
            self._cancel(request)
        for peer in self.door.peers():
            peer.abort()

    async def _drain(self) -> float:
        """Let running requests end, at most `drain_s` seconds; admit no new ones.

        Returns the seconds that are left for edges to take what was sent.
        """
        until_s = time.monotonic() + self.config.drain_s
        self.unready = "the server is stopping"
        log.info("draining", extra=fields(requests=len(self.requests), drain_s=self.config.drain_s))
        notice = wire.Error(0, wire.ErrorCode.DRAINING, fatal=False, sentence=self.unready)
        for peer in self.door.admitted:
            peer.send(notice)
        if self.requests:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.config.drain_s)
        return max(until_s - time.monotonic(), CLOSE_TIMEOUT_S)
