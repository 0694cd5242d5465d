"""Who is connected, and the requests that they have open: what their messages do, how one ends.

Every message is applied here, at once and in the order in which it came; what a step brings forth
is told in verdicts.py. A message's order has been checked by its connection, its fields by itself.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from runtime.config import ServerConfig
from runtime.logs import fields
from runtime.model.batch import NO_ADAPTER
from runtime.model.config import ModelError
from runtime.server.door import Door, Identity
from runtime.server.guide import Guides
from runtime.server.metrics import Metrics, label
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.pipeline import Pipeline
from runtime.server.pulse import Pulse
from runtime.server.request import Phase, RejectedDraft, Request
from runtime.server.schedule.scheduler import Refused, Scheduler
from runtime.server.spilling import Spilling
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol

log = logging.getLogger(__name__)

TOLD_ADAPTERS = 3  # in a sentence, which has room for few
REVOKED = "the token that this edge came with holds no more"


@dataclass
class Edges:
    """Edges and their open requests.

    work    is set when somebody may be admitted, or get a credit, who could not before
    news    is told of what a step may take along that could not be in one before
    recall  takes back the step that is ahead of the running one, if one is
    """

    config: ServerConfig
    door: Door
    metrics: Metrics
    scheduler: Scheduler
    pipeline: Pipeline
    guides: Guides | None  # None enforces no constraints
    spilling: Spilling | None  # None keeps no pages that the KV pool gives up
    work: asyncio.Event
    news: Callable[[], object]
    recall: Callable[[], object]
    unready: str = "the port is not open yet"  # why no requests are taken; empty if they are
    requests: dict[tuple[FramedProtocol, int], Request] = field(default_factory=dict)
    pulses: dict[FramedProtocol, Pulse] = field(default_factory=dict)
    left: int = 0  # requests that gave a place free, since somebody set this to 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set when the last request ends
    _known: dict[FramedProtocol, EdgeProfile] = field(default_factory=dict)  # who drafted last
    _requests_of: Counter[Hashable] = field(default_factory=Counter)  # by user
    _preparing: set[asyncio.Future[None]] = field(default_factory=set)  # who is not in line yet

    def __post_init__(self) -> None:
        self._adapters_of_users = self.config.adapters_of_users

    def on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        """Apply one message of an edge; its order has been checked by the connection."""
        match message:
            case wire.Draft():
                self._draft(peer, message)
            case wire.Offer():
                self._offer(peer, message)
            case wire.Hello() | wire.Proof():
                self.door.answer(peer, message, time.monotonic())
                if peer in self.door.admitted:
                    log.info("edge admitted", extra=self.who(peer))
                    self.pulses[peer] = Pulse()
                    has_offers = peer.connection.has_offers
                    self._known[peer] = EdgeProfile.of_offers() if has_offers else EdgeProfile()
            case wire.Pong():
                self.metrics.pong(self.pulses[peer].answered(time.monotonic()))
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
                log.info("request cancelled", extra=self.who(peer, message.request))
                if request := self.requests.get((peer, message.request)):
                    self.cancel(request)

    def on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        """Free everything that a gone edge held."""
        is_fine = peer.ended_with is None and not peer.cut_bytes
        level = logging.INFO if is_fine else logging.WARNING
        log.log(level, "edge left", extra=self.who(peer, code=peer.ended_with, reason=reason))
        self.metrics.edge_left(peer)
        self.door.left(peer)
        self.pulses.pop(peer, None)
        self._known.pop(peer, None)
        for request in [r for r in self.requests.values() if r.key[0] is peer]:
            self.cancel(request)

    def _open(self, peer: FramedProtocol, message: wire.Open) -> None:
        self.metrics.opened()
        identity, user = self.door.identity, self.door.admitted[peer]
        assert identity is not None, "a request where there is no model"
        room = identity.max_context - message.prompt_tokens
        if peer in self.door.revoked:
            self.refuse(peer, message.request, wire.ErrorCode.AUTHENTICATION, REVOKED)
            return
        if refusal := self._refusal(identity, user, message.prompt_tokens):
            self.refuse(peer, message.request, *refusal)
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
        self.ask(peer)

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
        self.refuse(peer, message.request, wire.ErrorCode.ADAPTER, sentence)

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
        """Do what may take a while, and then let a request in line; what breaks ends it alone."""
        try:
            if request.constraint is not None:
                await self._guide(request, request.constraint)
            if self.spilling is not None and not request.ended:
                await self.spilling.fetch(self.scheduler.cache.beyond(request.page_keys))
        except Exception as error:  # memory that is not there, say
            peer, number = request.key
            log.exception("a request failed before its first step", extra=self.who(peer, number))
            if not request.ended:
                sentence = f"the server failed on this request: {error}"
                self.refuse(peer, number, wire.ErrorCode.INTERNAL, sentence)
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
                self.refuse(peer, number, wire.ErrorCode.CONSTRAINT, str(error))
        else:
            if not request.ended:
                request.guided(guide)
                self.lined_up(request)

    def lined_up(self, request: Request) -> None:
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
            self.news()

    def _submit(self, request: Request) -> None:
        """Let a request that has been read in line."""
        peer, number = request.key
        try:
            self.scheduler.submit(request)
        except Refused as error:
            code = wire.ErrorCode.BUSY if error.busy else wire.ErrorCode.LIMIT
            self.refuse(peer, number, code, str(error))
        else:
            self.metrics.prompted(len(request.context))
            self.news()

    def _draft(self, peer: FramedProtocol, message: wire.Draft) -> None:
        request = self.requests[peer, message.request]
        try:
            request.accept_draft(message, time.monotonic())
        except RejectedDraft as error:
            self.refuse(peer, message.request, wire.ErrorCode.PROTOCOL, str(error))
        else:
            self.pulses[peer].drafted()
            self.lined_up(request)
            self.pipeline.draft_arrived(request, message.draft_ms * 1e-3, request.ready_s)
            self.news()

    def _offer(self, peer: FramedProtocol, message: wire.Offer) -> None:
        """Keep it for the next step that can take it along; nothing waits for it."""
        request = self.requests[peer, message.request]
        try:
            request.take_offer(message)
        except RejectedDraft as error:
            self.refuse(peer, message.request, wire.ErrorCode.PROTOCOL, str(error))
            return
        now_s = time.monotonic()
        self.pipeline.offer_came(request, message.base, now_s)
        request.take_along(self.pipeline.nodes_to_take(request, now_s))
        if request.takes_offer and request.verifying > 1:
            self.recall()  # it follows its own step there, with nothing but one token
            self.news()

    def ask(self, peer: FramedProtocol) -> None:
        """Send a Ping, unless one is under way."""
        if self.pulses[peer].may_ask():
            self.pulses[peer].asked(time.monotonic())
            peer.send(wire.Ping(0))

    def refuse(
        self, peer: FramedProtocol, number: int, code: wire.ErrorCode, sentence: str
    ) -> None:
        """End one request, opened or not, with a sentence; the connection stays."""
        about = self.who(peer, number, code=code, reason=sentence)
        log.warning("request refused", extra=about)
        self.metrics.refused(code)
        peer.send(wire.Error(number, code, fatal=False, sentence=sentence))
        if request := self.requests.get((peer, number)):
            self.end(request)

    def cancel(self, request: Request) -> None:
        """End a request that nobody asks for any more."""
        self.metrics.cancelled()
        self.end(request)

    def end(self, request: Request) -> None:
        """Forget a request, in whatever phase it is."""
        if request.in_steps:
            self.recall()
        del self.requests[request.key]
        self._requests_of[request.user] -= 1
        self.left += request.admitted
        peer, _ = request.key
        if peer in self._known and request.edge.max_nodes:
            self._known[peer] = request.edge
        if request.phase is not Phase.READING:
            self.pipeline.closed(request)
        self.scheduler.remove(request)
        if peer in self.door.revoked:
            self.send_off(peer)
        self.work.set()  # its pages may admit someone who waits
        if not self.requests:
            self.idle.set()

    def who(
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

    def send_off(self, peer: FramedProtocol) -> None:
        """Hang up on an edge whose token holds no more, once it has no answer."""
        if not any(request.key[0] is peer for request in self.requests.values()):
            peer.refuse(wire.ErrorCode.AUTHENTICATION, REVOKED)
