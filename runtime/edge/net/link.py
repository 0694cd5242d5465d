"""A connection to the server, shared by the requests of this edge, and its messages sorted to them.

Deals in messages; what is drafted and when it is sent is the business of `loop.py`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from runtime.edge.net.asking import before_prompt
from runtime.edge.net.watchdog import Sign, Watchdog
from runtime.logs import fields
from runtime.sampling import Sampling
from runtime.tree import Tree
from runtime.wire import messages as wire
from runtime.wire import stacks
from runtime.wire.auth import is_proven, new_nonce, prove
from runtime.wire.memory import join
from runtime.wire.places import connect
from runtime.wire.states import ConnectionState, RequestState, Role
from runtime.wire.tcp import FramedProtocol
from runtime.wire.tls import Trust
from runtime.wire.token_bits import OutsideVocabulary, check_tokens
from runtime.wire.vocabulary import other_vocabulary, same_vocabulary

log = logging.getLogger(__name__)

MAX_REDIRECTS = 3
PROMPT_FRAME_TOKENS = 4096  # small enough that other requests' drafts get through between

Answer = TypeVar("Answer", wire.Logprobs, wire.Verdict, wire.Credit)
Mail = tuple[wire.Message, float]  # and when it arrived, by time.monotonic()


class ServerError(ConnectionError):
    """The server refused or went away; the message is a sentence for the user.

    `code` is the server's reason, None if there is no connection to it.
    """

    def __init__(self, sentence: str, code: wire.ErrorCode | None = None):
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """How the ends know each other: our user's token, whose certificate is the server's, and what
    our ids below a number of rows stand for (16 bytes; None leaves it to the server to compare).
    """

    token: bytes = b""
    trust: Trust | None = None
    vocabulary_hash: Callable[[int], bytes] | None = None


NO_CREDENTIALS = Credentials()


async def reach(host: str, port: int, trust: Trust | None = None, stack: str = "") -> None:
    """Whether anybody listens there, before there is anything to greet with. ServerError."""
    peer = await _connect(host, port, _ignore, _ignore, trust, stack)
    peer.close()


def _ignore(peer: FramedProtocol, what: wire.Message | str | None) -> None:
    """Nobody is there yet to hear it."""


async def _connect(
    host: str,
    port: int,
    on_message: Callable[[FramedProtocol, wire.Message], None],
    on_closed: Callable[[FramedProtocol, str | None], None],
    trust: Trust | None,
    stack: str,
) -> FramedProtocol:
    """By the host's network stack, if one is named. Raises ServerError."""
    try:
        if stack:
            return await stacks.connect(stack, host, port, on_message, on_closed, trust=trust)
        tls = trust.context if trust else None
        return await connect(host, port, on_message, on_closed, tls=tls)
    except ConnectionError as error:
        raise ServerError(str(error)) from error


class Link:
    """A connection to the server, greeted and ready for requests.

    template is the target's chat template where the edge has another one or none, otherwise None;
    adapters are the names that the server has told of.
    """

    def __init__(self, hello: wire.Hello, credentials: Credentials) -> None:
        self.welcome: wire.Welcome  # there once `open` has returned, and the peer once it connected
        self.template: wire.Template | None = None
        self.adapters: tuple[str, ...] = ()
        self.rtt_s: float | None = None  # of the Hello and the first word after it
        self._hello, self._credentials = hello, credentials
        self._said_s = 0.0  # when the Hello was sent
        self._peer: FramedProtocol
        self._greeted: asyncio.Future[wire.Welcome | wire.Redirect] = (
            asyncio.get_running_loop().create_future()
        )
        self._inboxes: dict[int, asyncio.Queue[Mail | None]] = {}  # None when the link is lost
        self._on_reading: dict[int, Callable[[wire.Reading], None]] = {}
        self._last_number = 0
        self._lost: ServerError | None = None
        self._gone = asyncio.Event()
        self._log_level = logging.WARNING  # of what the server says to the edge as a whole
        self._watchdog = Watchdog()
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        hello: wire.Hello,
        credentials: Credentials = NO_CREDENTIALS,
        stack: str = "",
    ) -> "Link":
        """Connect, greet, prove who we are, and follow where we are sent. Raises ServerError.

        stack: the socket of a network stack to connect by, in place of this process's TCP.
        """
        for _ in range(1 + MAX_REDIRECTS):
            link = cls(replace(hello, nonce=new_nonce()), credentials)
            try:
                answer = await link._greet(host, port, stack)
            except ServerError as error:
                if error.code is not wire.ErrorCode.VERSION or hello.version != wire.OFFERS_VERSION:
                    raise
                hello = replace(hello, version=wire.VERSION)  # it may be older than Offers
                continue
            if isinstance(answer, wire.Welcome):
                log.info("welcomed", extra=fields(server=f"{host}:{port}", model=answer.model))
                link.welcome = answer
                link._watch()
                return link
            host, port = answer.host, answer.port
        raise ServerError(f"sent on {MAX_REDIRECTS} times, last to {host}:{port}: a circle?")

    @classmethod
    async def join(
        cls, server: FramedProtocol, hello: wire.Hello, token: bytes, certificate: bytes
    ) -> "Link":
        """The same with a server in this event loop, by a protocol that it has for one more edge.

        certificate: its hash, to which proofs are bound. Raises ServerError.
        """
        link = cls(replace(hello, nonce=new_nonce()), Credentials(token))
        link._log_level = logging.DEBUG  # it is said in the log of that server itself
        link._peer = join(server, link._on_message, link._on_closed, certificate)
        answer = await link._say_hello()
        if isinstance(answer, wire.Redirect):
            raise ServerError("this server has no model: it sends its edges to others")
        link.welcome = answer
        link._watch()
        return link

    @property
    def bytes_sent(self) -> int:
        """Bytes of all frames sent, headers included."""
        return self._peer.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of all frames received, headers included."""
        return self._peer.bytes_received

    @property
    def has_offers(self) -> bool:
        """Whether Offers may be sent: this edge wants to, and the server knows them."""
        return self._peer.connection.has_offers

    @property
    def alive(self) -> bool:
        """False once the connection is gone."""
        return self._lost is None

    def request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_nodes: int = wire.MAX_NODES,
        on_reading: Callable[[wire.Reading], None] = lambda reading: None,
    ) -> "Request":
        """Send OPEN and the prompt; drafts will have `max_nodes` at most, 0 to decode plainly.

        Stop ids and biases of tokens that this server's target lacks are left out: it cannot say
        them. `on_reading` hears how far the prompt has been read. Raises ServerError, and sends
        nothing, where an id of the prompt is not one of the target's.
        """
        self._check_alive()
        number = self._free_number()
        # here and not only where they are gathered: the server before may have had more rows
        rows = self.welcome.vocabulary_size
        known = sampling.known_to(rows)
        biased = [index for index, _ in known.logit_bias]
        said = before_prompt(known, number, len(prompt), max_nodes)
        try:
            check_tokens((*prompt, *known.stop_ids, *biased), rows)
        except OutsideVocabulary as error:
            raise ServerError(
                f"the request cannot be sent: {error}", wire.ErrorCode.LIMIT
            ) from None
        self._last_number = number
        self._inboxes[number] = asyncio.Queue()
        self._on_reading[number] = on_reading
        for message in said:
            self._peer.send(message)
        for start in range(0, len(prompt), PROMPT_FRAME_TOKENS):
            self._peer.send(wire.Prompt(number, tuple(prompt[start : start + PROMPT_FRAME_TOKENS])))
        return Request(self, number, self.bytes_sent, sampling.logprobs is not None)

    def _free_number(self) -> int:
        """The next number, round and round, that no request has. Raises ServerError."""
        connection, most = self._peer.connection, self.welcome.max_requests
        if connection.live_requests >= most:
            sentence = f"{most} requests are running, as many as this server allows an edge"
            raise ServerError(sentence, wire.ErrorCode.BUSY)
        for ahead in range(wire.MAX_REQUEST):
            number = (self._last_number + ahead) % wire.MAX_REQUEST + 1
            # one whose end nobody has read yet is used as well
            if (
                number not in self._inboxes
                and connection.request_state(number) is RequestState.UNUSED
            ):
                return number
        raise ServerError("all numbers of requests are in use", wire.ErrorCode.BUSY)

    async def close(self) -> None:
        """Hang up, when everything sent is written."""
        self._peer.close()
        await self._gone.wait()

    async def _greet(self, host: str, port: int, stack: str) -> wire.Welcome | wire.Redirect:
        trust = self._credentials.trust
        self._peer = await _connect(host, port, self._on_message, self._on_closed, trust, stack)
        if trust and not trust.is_pinned(self._peer.certificate):
            self._greeted.cancel()  # nobody waits for it
            await self.close()
            raise ServerError(
                f"the certificate of {host}:{port} is not the one that --tls names; "
                "if the server has a new one, ask its operator for the new hash"
            )
        return await self._say_hello()

    async def _say_hello(self) -> wire.Welcome | wire.Redirect:
        self._said_s = time.monotonic()
        self._peer.send(self._hello)
        try:
            return await self._greeted
        except asyncio.CancelledError:
            self._peer.close()  # nobody else knows of it
            raise

    def _prove(self, challenge: wire.Challenge) -> None:
        """Answer the server's challenge, if it has the token itself."""
        token, known = self._credentials.token, (self._hello, challenge.nonce)
        certificate = self._peer.certificate
        if not token:
            self._refuse("this server wants to know who you are: give --user and --token-file")
        elif not is_proven(challenge.proof, token, Role.SERVER, *known, certificate):
            self._refuse(
                f"this server does not know user {self._hello.user!r} with this token, "
                "or is not the server it says it is"
            )
        else:
            self._peer.send(wire.Proof(prove(token, Role.EDGE, *known, certificate)))

    def _answered(self, message: wire.Welcome | wire.Redirect) -> None:
        if self._credentials.token and self._peer.connection.challenge is None:
            self._refuse("the server did not prove that it knows your token")
        elif isinstance(message, wire.Redirect):
            self._greeted_with(message)
        elif self._is_other_vocabulary(message):
            sentence = other_vocabulary(self._hello, message)
            self._refuse(sentence, wire.ErrorCode.VOCABULARY)
        elif self._peer.connection.state is ConnectionState.OPEN:
            self._greeted_with(message)

    def _is_other_vocabulary(self, welcome: wire.Welcome) -> bool:
        own_hash = self._credentials.vocabulary_hash
        rows = self._hello.vocabulary_size
        return own_hash is not None and not same_vocabulary(welcome, rows, own_hash)

    def _got_template(self, template: wire.Template) -> None:
        self.template = template
        welcome = self._peer.connection.welcome
        assert welcome is not None, "a Template before the Welcome"
        self._greeted_with(welcome)

    def _greeted_with(self, message: wire.Welcome | wire.Redirect) -> None:
        if not self._greeted.done():
            self._greeted.set_result(message)

    def _refuse(self, sentence: str, code: wire.ErrorCode = wire.ErrorCode.AUTHENTICATION) -> None:
        self._lose(sentence, code)
        self._peer.refuse(code, sentence)

    def _send(self, message: wire.Message) -> None:
        self._check_alive()
        self._peer.send(message)

    async def _receive(self, number: int) -> Mail:
        inbox = self._inboxes[number]
        if inbox.empty():  # what came before the link was lost is as good as ever
            self._check_alive()
        mail = await inbox.get()
        if mail is None:
            raise self._why_lost()
        return mail

    def _has_mail(self, number: int) -> bool:
        return not self._inboxes[number].empty()

    def _release(self, number: int, finished: bool) -> None:
        """Forget a request; one that is still running is cancelled on the server."""
        self._on_reading.pop(number, None)
        if self._inboxes.pop(number, None) is not None and not finished and self._lost is None:
            self._peer.send(wire.Close(number))

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._why_lost()

    def _why_lost(self) -> ServerError:
        assert self._lost is not None, "the link is not lost"
        return ServerError(str(self._lost), self._lost.code)  # anew: it collects a traceback

    def _saw_round(self, round_s: float, verdict: wire.Verdict, sent_bytes: int) -> None:
        self._watchdog.saw_arrival(sent_bytes)
        self._watchdog.saw_round(round_s, verdict.verify_ms * 1e-3)
        if self._timer is not None and self._lost is None:
            self._timer.cancel()
            self._watch_later()

    def _watch(self) -> None:
        """Look after the link, now and whenever it has been silent for long, until it is lost."""
        heard_bytes = self.bytes_received + self._peer.taken_bytes
        sign = self._watchdog.look(heard_bytes, self.bytes_sent, waiting=bool(self._inboxes))
        if sign is Sign.DEAD:
            self._lose("the server is silent, and does not answer a Ping")
            self._peer.close()
            return
        if sign is Sign.ASK:
            self._peer.send(wire.Ping(0))
        self._watch_later()

    def _watch_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._watchdog.patience_s, self._watch)

    def _on_message(self, peer: FramedProtocol, message: wire.Message) -> None:
        if self.rtt_s is None:
            self.rtt_s = time.monotonic() - self._said_s
        match message:
            case wire.Challenge():
                self._prove(message)
            case wire.Welcome() | wire.Redirect():
                self._answered(message)
            case wire.Template():
                self._got_template(message)
            case wire.Adapters():
                self.adapters = message.each
            case wire.Pong():
                self._watchdog.saw_pong()
            case wire.Error(request=0, fatal=True):
                self._lose(message.sentence, message.code)
            case wire.Error(request=0):
                code = message.code.name.lower()
                about = fields(code=code, reason=message.sentence)
                log.log(self._log_level, "the server says", extra=about)
            case wire.Reading() if message.request in self._on_reading:
                self._on_reading[message.request](message)
            case _ if message.request in self._inboxes:
                self._inboxes[message.request].put_nowait((message, time.monotonic()))

    def _on_closed(self, peer: FramedProtocol, reason: str | None) -> None:
        self._lose(reason or "the connection is closed")
        self._gone.set()

    def _lose(self, sentence: str, code: wire.ErrorCode | None = None) -> None:
        """Tell everyone who waits."""
        if self._lost is not None:
            return
        self._lost = ServerError(sentence, code)
        if self._timer is not None:
            self._timer.cancel()
        if not self._greeted.done():
            self._greeted.set_exception(self._why_lost())
        for inbox in self._inboxes.values():
            inbox.put_nowait(None)


@dataclass
class Request:
    """One request on a link: drafts out, verdicts and credits in."""

    link: Link
    number: int
    sent_bytes: int  # of the link, up to the last frame that was sent for it
    wants_logprobs: bool = False
    round: int = -1  # of the last verdict
    arrived_s: float = 0.0  # when the last message came, by time.monotonic()
    asked_s: float = field(default_factory=time.monotonic)  # since when a verdict is due
    finished: bool = False
    logprobs: wire.Logprobs | None = None  # of the last verdict's tokens, where they were asked for

    def send(self, base: int, tree: Tree) -> None:
        """Send the draft of the next round, made after `base` tokens, within the turn received."""
        self.asked_s = time.monotonic()
        draft_ms = wire.clamp_ms((self.asked_s - self.arrived_s) * 1e3)
        self.link._send(
            wire.Draft(self.number, self.round + 1, base, tree.tokens, tree.parents, draft_ms)
        )
        self.sent_bytes = self.link.bytes_sent

    def offer(self, base: int, tree: Tree) -> None:
        """Send a tree unasked, made after `base` tokens: no verdict says that it has arrived."""
        self.link._send(wire.Offer(self.number, base, tree.tokens, tree.parents))

    @property
    def has_mail(self) -> bool:
        """Whether a verdict, a credit or an error has come and was not asked for yet."""
        return self.link._has_mail(self.number)

    async def verdict(self) -> wire.Verdict:
        """The next verdict, and its `logprobs`. Raises ServerError."""
        if self.wants_logprobs:
            self.logprobs = await self._receive(wire.Logprobs)
        verdict = await self._receive(wire.Verdict)
        self.round = verdict.round
        if verdict.turn is wire.Turn.MORE:  # the last one of its step has the times
            return verdict
        self.link._saw_round(self.arrived_s - self.asked_s, verdict, self.sent_bytes)
        self.asked_s = self.arrived_s
        self.finished = verdict.finish is not wire.Finish.NONE
        return verdict

    async def credit(self) -> wire.Credit:
        """The credit for a draft that has to wait for one. Raises ServerError."""
        return await self._receive(wire.Credit)

    def close(self) -> None:
        """Give the request up, if it is still running."""
        self.link._release(self.number, self.finished)

    async def _receive(self, kind: type[Answer]) -> Answer:
        message, self.arrived_s = await self.link._receive(self.number)
        if isinstance(message, wire.Error):
            self.finished = True
            raise ServerError(message.sentence, message.code)
        assert isinstance(message, kind), f"{type(message).__name__} instead of {kind.__name__}"
        return message
