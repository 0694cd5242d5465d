"""One end of an STF/1 connection: bytes in, messages out; a message in, bytes out.

The tables of `states` say who may send what when, and how requests end. Both ends walk the same
ones, so that what one refuses to send is what the other refuses to receive. No socket, no clock,
no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.wire.frames import (
    HEADER,
    MOST_BYTES,
    Header,
    decode_body,
    decode_header,
    encode_frame,
)
from runtime.wire.messages import (
    MESSAGE_TYPES,
    OFFERS_VERSION,
    Adapter,
    Adapters,
    Answering,
    Challenge,
    Close,
    Constraint,
    Credit,
    Draft,
    Error,
    ErrorCode,
    Finish,
    Hello,
    Logprobs,
    Message,
    Offer,
    Open,
    Ping,
    Pong,
    Prompt,
    Proof,
    ProtocolError,
    Reading,
    Redirect,
    Rule,
    Template,
    Turn,
    Verdict,
    Welcome,
    template_follows,
    template_hash,
)
from runtime.wire.states import CONNECTION_TABLE, REQUEST_TABLE, ConnectionState, RequestState, Role

__all__ = ["Connection", "ConnectionState", "RequestState", "Role"]

MAX_HANDSHAKE_FRAME_BYTES = 512

OFFERS_A_VERDICT = 2  # and before the first: whoever looks at them is not to be flooded
STATE_OF_TURN = {
    Turn.SERVER: RequestState.VERIFYING,
    Turn.EDGE: RequestState.DRAFTING,
    Turn.WAIT: RequestState.WAITING,
    Turn.MORE: RequestState.VERIFYING,
}

# A Move equals a tuple of the same, which takes less time to make.
OF_CONNECTIONS: Mapping[Any, tuple[ConnectionState, ...]] = CONNECTION_TABLE
OF_REQUESTS: Mapping[Any, tuple[RequestState, ...]] = REQUEST_TABLE

ENDING = (RequestState.FINISHED, RequestState.CLOSING)
FREQUENT = (Draft, Verdict, Credit)  # change nothing but their request

_Place = TypeVar("_Place", ConnectionState, RequestState)


@dataclass(slots=True)
class _Request:
    """What the next message of a request is checked against."""

    state: RequestState
    params: Open
    prompt_tokens_due: int
    most_nodes: int  # that a draft of this request may ever have
    told: tuple[type[Message], ...] = ()  # of those that precede a Verdict, what has come
    round: int = 0  # of the next draft, or of the verdict on it
    offers: int = 0
    granted_nodes: int = 0  # of the next draft
    parents: tuple[int, ...] = ()  # of the draft that waits for its verdict
    logprobs: Logprobs | None = None  # of the next verdict, if it has some


class Connection:
    """The protocol as one end sees it.

    state     where the connection stands
    hello     the edge's Hello, once it has come or gone
    challenge the server's Challenge, likewise, if it wanted a proof
    welcome   the server's Welcome, likewise: the limits that hold from then on
    """

    # without a dict: a server has thousands, and comes to each after all the others
    __slots__ = (
        *("role", "state", "hello", "challenge", "welcome", "frames_sent", "frames_received"),
        *("_peer", "_fault", "_requests", "_ended_by_server", "_unanswered_pings"),
        *("_vocabulary_size", "_received", "_outgoing"),
    )

    def __init__(self, role: Role) -> None:
        self.role, self._peer = role, role.peer
        self.state = ConnectionState.HELLO_DUE
        self.hello: Hello | None = None
        self.challenge: Challenge | None = None
        self.welcome: Welcome | None = None
        self.frames_sent = 0
        self.frames_received = 0
        self._fault: ProtocolError | None = None
        self._requests: dict[int, _Request] = {}
        self._ended_by_server: set[int] = set()
        self._unanswered_pings: dict[Role, int] = {}
        self._vocabulary_size = 0  # no message before the Welcome carries token ids
        self._received = bytearray()
        self._outgoing = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that are not a whole frame yet."""
        return len(self._received)

    @property
    def live_requests(self) -> int:
        """Requests that count against max_requests: those that the edge has not closed."""
        return sum(request.state is not RequestState.CLOSING for request in self._requests.values())

    def request_state(self, request: int) -> RequestState:
        """Where a request stands."""
        return self._requests[request].state if request in self._requests else RequestState.UNUSED

    def receive(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete, however the stream was cut: feed and drain.

        Afterwards write what data_to_send gives. If a ProtocolError is raised, messages before
        the fault in the same call are lost; next_message gives those too.
        """
        self.feed(data)
        return list(iter(self.next_message, None))

    def feed(self, data: bytes) -> None:
        """Take bytes in; a closed connection ignores them."""
        if self.state is not ConnectionState.CLOSED:
            self._received += data

    def next_message(self) -> Message | None:
        """The next message fed, or None until more bytes come.

        Answers that the protocol itself owes (a Pong, a Close, an Error about a fault) are left
        for data_to_send; the frames they answer, and late ones, are not delivered. The first
        ProtocolError ends the connection: every later call raises it again.
        """
        if self._fault is not None:
            raise ProtocolError(self._fault.code, self._fault.sentence)
        try:
            while (message := self._decode_next()) is not None:
                if self._take(message):
                    return message
        except ProtocolError as fault:
            self._fail(fault)
            raise
        return None

    def send(self, message: Message) -> bytes:
        """The bytes to write, answers owed first; ValueError if the tables forbid the message.

        On the edge, a message for a request that the server has ended meanwhile is dropped, and
        so is a second Close: its caller may not have read the news yet.
        """
        if self.role is Role.EDGE and self._is_overtaken(message):
            return self.data_to_send()
        try:
            frame = self._framed(message)
        except ProtocolError as fault:
            name = type(message).__name__
            raise ValueError(f"the {self.role.value} cannot send {name}: {fault}") from None
        return self.data_to_send() + frame if self._outgoing else frame

    def data_to_send(self) -> bytes:
        """Bytes of answers that receive has left to be written; each is given once."""
        if not self._outgoing:
            return b""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def _decode_next(self) -> Message | None:
        if len(self._received) < HEADER.size:
            return None
        # Checked as soon as it is there, so that no forbidden body is ever collected.
        header = decode_header(self._received)
        self._check_header(header)
        if len(self._received) < header.length:
            return None
        body = bytes(self._received[HEADER.size : header.length])
        del self._received[: header.length]
        self.frames_received += 1
        return decode_body(header, body, self._vocabulary_size)

    def _check_header(self, header: Header) -> None:
        kind, state = MESSAGE_TYPES[header.type], self.state
        if (state, self._peer, kind) not in OF_CONNECTIONS:
            raise _forbidden(state, self._peer, kind)
        is_welcome = state is ConnectionState.OPEN or state is ConnectionState.TEMPLATE_DUE
        limit = MOST_BYTES[kind] if is_welcome else MAX_HANDSHAKE_FRAME_BYTES
        if header.length > limit:
            sentence = f"the frame has {header.length} bytes: at most {limit} are allowed"
            raise ProtocolError(ErrorCode.LIMIT, sentence)
        expected = self.frames_received & 0xFFFF
        if header.seq != expected:
            raise _violation(f"frame {header.seq} came where {expected} was due: one is lost")

    def _take(self, message: Message) -> bool:
        """Apply a received message and answer it; whether it is to be delivered."""
        request = self._requests.get(message.request)
        was_ending = request is not None and request.state in ENDING
        if isinstance(message, FREQUENT):  # its header has been checked
            self._advance(self._peer, message)
        else:
            self._step(self._peer, message)
        if isinstance(message, Ping):
            self._queue(Pong(message.nonce))
            return False
        if was_ending:
            return False
        if request is not None and request.state in ENDING:
            self._queue(Close(message.request))
            if self.role is Role.EDGE:
                self._ended_by_server.add(message.request)
        return True

    def _queue(self, message: Message) -> None:
        self._outgoing += self._framed(message)

    def _framed(self, message: Message) -> bytes:
        # Encoded first: a message that has no bytes must not move the state.
        frame = encode_frame(message, self.frames_sent & 0xFFFF, self._vocabulary_size)
        self._step(self.role, message)
        self.frames_sent += 1
        return frame

    def _fail(self, fault: ProtocolError) -> None:
        self._queue(Error(request=0, code=fault.code, fatal=True, sentence=fault.sentence))
        self._fault = fault

    def _is_overtaken(self, message: Message) -> bool:
        if (
            isinstance(message, Close)
            and self.request_state(message.request) is RequestState.CLOSING
        ):
            return True
        late = isinstance(message, Rule | Constraint | Adapter | Prompt | Draft | Offer | Close)
        return late and message.request in self._ended_by_server

    def _step(self, sender: Role, message: Message) -> None:
        """Walk the tables by one message, sent or received; ProtocolError if they forbid it."""
        followers = _allowed(OF_CONNECTIONS, self.state, sender, type(message))
        if isinstance(message, FREQUENT):
            self._advance(sender, message)
            return
        match message:
            case Hello():
                self.hello = message
            case Challenge():
                self.challenge = message
            case Welcome():
                self._welcomed(message)
                return
            case Template():
                self._check_template(message)
            case Redirect() | Proof() | Adapters():
                pass
            case Ping():
                self._ping(sender, message)
            case Pong():
                self._pong(sender, message)
            case Error(request=0):
                self._connection_error(followers, message)
                return
            case Error(fatal=True):
                raise _violation("a fatal Error ends the connection: its request must be 0")
            case Open():
                self._open(sender, message)
            case _:
                self._advance(sender, message)
        self._enter(followers[0])

    def _enter(self, state: ConnectionState) -> None:
        self.state = state
        if state is ConnectionState.CLOSED:
            self._received.clear()

    def _welcomed(self, welcome: Welcome) -> None:
        assert self.hello is not None, "a Welcome before the Hello"
        if welcome.version > self.hello.version:
            sentence = f"the Welcome says version {welcome.version}, the Hello {self.hello.version}"
            raise ProtocolError(ErrorCode.VERSION, sentence)
        self.welcome, self._vocabulary_size = welcome, welcome.vocabulary_size
        follows = template_follows(self.hello, welcome)
        self._enter(ConnectionState.TEMPLATE_DUE if follows else ConnectionState.OPEN)

    def _check_template(self, template: Template) -> None:
        assert self.welcome is not None, "a Template before the Welcome"
        if template.source and template_hash(template.source) != self.welcome.template_hash:
            raise _violation("the Template is not the one that the Welcome tells of")

    def _ping(self, sender: Role, ping: Ping) -> None:
        if sender in self._unanswered_pings:
            raise _violation("the Ping before has no answer yet")
        self._unanswered_pings[sender] = ping.nonce

    def _pong(self, sender: Role, pong: Pong) -> None:
        if self._unanswered_pings.get(sender.peer) != pong.nonce:
            raise _violation(f"no Ping with nonce {pong.nonce} waits for an answer")
        del self._unanswered_pings[sender.peer]

    def _connection_error(self, followers: tuple[ConnectionState, ...], error: Error) -> None:
        state = ConnectionState.CLOSED if error.fatal else ConnectionState.OPEN
        if state not in followers:
            raise _violation("an Error before the connection is open must be fatal")
        self._enter(state)

    def _open(self, sender: Role, message: Open) -> None:
        _allowed(OF_REQUESTS, self.request_state(message.request), sender, Open)
        assert self.welcome is not None, "a request before the Welcome"
        limit = self.welcome.max_requests
        # Counting one by one is left to the case where it may matter.
        if len(self._requests) >= limit and self.live_requests >= limit:
            sentence = f"{limit} requests are open, as many as the server allows"
            raise ProtocolError(ErrorCode.LIMIT, sentence)
        self._requests[message.request] = _Request(
            RequestState.PROMPTING,
            message,
            message.prompt_tokens,
            min(message.max_nodes, self.welcome.max_nodes),
        )
        self._ended_by_server.discard(message.request)

    def _advance(
        self,
        sender: Role,
        message: Rule | Constraint | Adapter | Prompt | Draft | Offer | Answering | Close | Error,
    ) -> None:
        request = self._requests.get(message.request)
        place = RequestState.UNUSED if request is None else request.state
        followers = OF_REQUESTS.get((place, sender, type(message)))
        if followers is None:
            raise _forbidden(place, sender, type(message))
        assert request is not None, "what begins a request is none of these"
        if place in ENDING:
            state = followers[-1 if _is_last_verdict(message) else 0]
        else:
            state = self._follow(request, message, followers)
        assert state in followers, f"{state} does not follow by the table"
        request.state = state
        if state is RequestState.UNUSED:
            del self._requests[message.request]

    def _follow(
        self,
        request: _Request,
        message: Rule | Constraint | Adapter | Prompt | Draft | Offer | Answering | Close | Error,
        followers: tuple[RequestState, ...],
    ) -> RequestState:
        """Check a message of a live request against what came before it, and count it."""
        match message:
            case Draft():
                _check_draft(request, message)
                request.parents = message.parents
            case Verdict():
                _check_verdict(request, message)
                self._check_turn(message)
                request.round, request.parents, request.logprobs = request.round + 1, (), None
                request.granted_nodes = message.max_nodes
                return RequestState.FINISHED if message.finish else STATE_OF_TURN[message.turn]
            case Credit():
                _check_grant(request, message)
                request.granted_nodes = message.max_nodes
            case Offer():
                self._check_offer(request, message)
                request.offers += 1
                return request.state
            case Rule() | Constraint() | Adapter():
                _check_first(request, message)
                request.told += (type(message),)
            case Prompt():
                _check_prompt(request, message)
                request.told += (Prompt,)
                request.prompt_tokens_due -= len(message.tokens)
                return (
                    RequestState.PROMPTING if request.prompt_tokens_due else RequestState.VERIFYING
                )
            case Reading():
                _check_reading(request, message)
            case Logprobs():
                _check_logprobs(request, message, self._vocabulary_size)
                request.logprobs = message
        return followers[0]

    @property
    def has_offers(self) -> bool:
        """Whether the edge may send Offers: both ends say a version that knows them."""
        return self.welcome is not None and self.welcome.version >= OFFERS_VERSION

    def _check_turn(self, verdict: Verdict) -> None:
        if verdict.turn is Turn.MORE and not self.has_offers:
            raise _violation("a Verdict says MORE to an edge that makes no Offers")
        if verdict.turn is Turn.SERVER and verdict.max_nodes and not self.has_offers:
            raise _violation("a Verdict would like Offers of an edge that makes none")

    def _check_offer(self, request: _Request, offer: Offer) -> None:
        if not self.has_offers:
            raise _violation(f"Offers are of version {OFFERS_VERSION}, which nobody said")
        if not request.most_nodes:
            sentence = f"request {offer.request}: an Offer, but no nodes are allowed"
            raise ProtocolError(ErrorCode.LIMIT, sentence)
        # of verdicts the server has sent at least those that the edge has received
        if request.offers >= OFFERS_A_VERDICT * (1 + request.round):
            sentence = f"request {offer.request}: too many Offers for {request.round} Verdicts"
            raise ProtocolError(ErrorCode.LIMIT, sentence)


def _violation(sentence: str) -> ProtocolError:
    return ProtocolError(ErrorCode.PROTOCOL, sentence)


def _allowed(
    table: Mapping[Any, tuple[_Place, ...]],
    place: ConnectionState | RequestState,
    sender: Role,
    kind: type[Message],
) -> tuple[_Place, ...]:
    followers = table.get((place, sender, kind))
    if followers is None:
        raise _forbidden(place, sender, kind)
    return followers


def _forbidden(
    place: ConnectionState | RequestState, sender: Role, kind: type[Message]
) -> ProtocolError:
    return _violation(f"the {sender.value} may not send {kind.__name__} while {place.value}")


def _check_first(request: _Request, message: Rule | Constraint | Adapter) -> None:
    if Prompt in request.told or type(message) in request.told:
        name = type(message).__name__
        raise _violation(f"request {message.request}: {name} comes once, and before the prompt")


def _check_reading(request: _Request, reading: Reading) -> None:
    if request.round:
        raise _violation(f"request {reading.request}: the prompt has been read before Verdict 0")
    most = request.params.prompt_tokens
    if reading.read_tokens > most:
        sentence = f"{reading.read_tokens} tokens of {most} are read"
        raise _violation(f"request {reading.request}: {sentence}")


def _check_logprobs(request: _Request, message: Logprobs, vocabulary_size: int) -> None:
    if not request.params.logprobs or request.logprobs:
        raise _violation(f"request {message.request}: no Logprobs are due")
    tokens, listed = len(message.logprobs), len(message.top_ids)
    due = tokens * min(request.params.logprobs - 1, vocabulary_size)
    if listed != due:
        sentence = f"{listed} top_ids come for {tokens} tokens, {due} were asked for"
        raise _violation(f"request {message.request}: {sentence}")


def _check_prompt(request: _Request, prompt: Prompt) -> None:
    if len(prompt.tokens) > request.prompt_tokens_due:
        due, got = request.prompt_tokens_due, len(prompt.tokens)
        raise _violation(f"request {prompt.request}: {due} prompt tokens were due, {got} came")


def _check_draft(request: _Request, draft: Draft) -> None:
    if draft.round != request.round:
        due, got = request.round, draft.round
        raise _violation(f"request {draft.request}: round {due} was due, {got} came")
    nodes, limit = len(draft.tokens), request.granted_nodes
    if nodes > limit:
        sentence = f"request {draft.request}: {nodes} nodes, at most {limit} are allowed"
        raise ProtocolError(ErrorCode.LIMIT, sentence)


def _check_verdict(request: _Request, verdict: Verdict) -> None:
    if verdict.round != request.round:
        due, got = request.round, verdict.round
        raise _violation(
            f"request {verdict.request}: the verdict of round {due} was due, not {got}"
        )
    nodes = len(request.parents)
    if verdict.node > nodes:
        sentence = f"request {verdict.request}: node {verdict.node} of {nodes} is accepted"
        raise _violation(sentence)
    if request.params.logprobs:
        tokens = 1 + _depth(request.parents, verdict.node)
        told = len(request.logprobs.logprobs) if request.logprobs else 0
        if told != tokens:
            sentence = f"{tokens} tokens come with {told} logprobs"
            raise _violation(f"request {verdict.request}: {sentence}")
    if verdict.turn in (Turn.EDGE, Turn.WAIT) or verdict.max_nodes:
        _check_grant(request, verdict)


def _depth(parents: tuple[int, ...], node: int) -> int:
    depth = 0
    while node:
        node, depth = parents[node - 1], depth + 1
    return depth


def _check_grant(request: _Request, grant: Verdict | Credit) -> None:
    if request.most_nodes == 0:
        raise _violation(f"request {grant.request} is to draft, but its edge never drafts")
    if grant.max_nodes > request.most_nodes:
        most, got = request.most_nodes, grant.max_nodes
        raise _violation(f"request {grant.request} may draft {most} nodes at most, not {got}")


def _is_last_verdict(message: Message) -> bool:
    return isinstance(message, Verdict) and message.finish is not Finish.NONE
