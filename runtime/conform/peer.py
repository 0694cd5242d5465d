"""What cases are made of: connections that may say anything, and requests that check the answers.

Bytes are made and read with `runtime.wire`'s frames alone: no state table stands between a case and
the server, so a case can break any rule. Knows nothing of cases.
"""

import asyncio
import random
import socket
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from runtime.wire import messages as wire
from runtime.wire.auth import NO_CERTIFICATE, certificate_hash, is_proven, new_nonce, prove
from runtime.wire.frames import HEADER, MOST_BYTES, decode_body, decode_header, encode_frame
from runtime.wire.states import Role
from runtime.wire.tls import Trust

Kind = TypeVar("Kind", bound=wire.Message)

NO_TURN = "the server never gives the edge a turn"
# The smallest that every system grants: a server's system then keeps little for such an edge, too.
# what it sends does not wait here unseen either, where the server has stopped reading
NARROW = {
    (socket.SOL_SOCKET, "SO_RCVBUF"): 4096,
    (socket.SOL_SOCKET, "SO_SNDBUF"): 65536,
    (socket.IPPROTO_TCP, "TCP_MAXSEG"): 536,
}


class Failed(Exception):
    """The server does not do what the page demands; the message says what it does."""


class Skipped(Exception):
    """The case cannot be decided on this server; the message says why."""


@dataclass(frozen=True)
class Target:
    """The server under test, and what an edge needs to be let in."""

    host: str
    port: int
    hello: wire.Hello
    vocabulary_hash: Callable[[int], bytes]  # of this end's ids below so many rows
    token: bytes = b""
    trust: Trust | None = None
    wait_s: float = 10.0  # for an answer that has to come


class Visitor:
    """A case's connections to the server. Use as an asynchronous context manager."""

    def __init__(self, target: Target):
        self.target = target
        self._peers: list[Peer] = []

    async def __aenter__(self) -> "Visitor":
        return self

    async def __aexit__(self, *exception: object) -> None:
        for peer in self._peers:
            peer.hang_up()

    async def connect(self, narrow: bool = False) -> "Peer":
        """A connection on which nothing was said; a narrow one takes little that is not read."""
        trust = self.target.trust
        try:
            streams = await asyncio.wait_for(self._streams(narrow), self.target.wait_s)
        except (OSError, asyncio.TimeoutError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no answer"
            raise Failed(f"no connection: {reason}") from error
        peer = Peer(*streams, self.target)
        self._peers.append(peer)
        if trust and not trust.is_pinned(peer.certificate):
            raise Failed("the certificate is not the pinned one")
        return peer

    async def _streams(self, narrow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.target.host, self.target.port
        tls = self.target.trust and self.target.trust.context
        if not narrow:
            return await asyncio.open_connection(host, port, ssl=tls)
        link = await _narrow_link(host, port)
        return await asyncio.open_connection(sock=link, ssl=tls, server_hostname=tls and host)

    async def admitted(self, narrow: bool = False) -> "Peer":
        """A connection after the handshake, on which everything sent so far has been handled."""
        peer = await self.connect(narrow)
        await peer.greet()
        await peer.is_alive()
        return peer

    def needs_user(self) -> None:
        """Skip the case unless there is a user to be."""
        if not self.target.token:
            raise Skipped("needs --user and --token-file of a server with users")


async def _narrow_link(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    link = socket.socket(family, kind, protocol)
    link.setblocking(False)
    for (level, name), value in NARROW.items():
        with suppress(AttributeError, OSError):  # not every system has every option
            link.setsockopt(level, getattr(socket, name), value)
    await loop.sock_connect(link, address)
    return link


class Peer:
    """One connection: frames out, right or wrong; frames in, each checked by itself."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target
    ) -> None:
        self.hello = replace(target.hello, nonce=new_nonce())
        self.welcome: wire.Welcome | None = None
        self.seq = self._seq_due = 0
        self.wait_s = target.wait_s
        self.at_end = False  # the server has closed
        self._has_ended = False  # we have closed our half
        self._reader, self._writer, self._target = reader, writer, target
        self._mail: dict[int, deque[wire.Message]] = defaultdict(deque)
        self.adapters: tuple[str, ...] = ()
        self.readings: dict[int, list[wire.Reading]] = defaultdict(list)
        link = writer.get_extra_info("ssl_object")
        self.certificate = (
            certificate_hash(link.getpeercert(binary_form=True)) if link else NO_CERTIFICATE
        )

    @property
    def vocabulary_size(self) -> int:
        return self.welcome.vocabulary_size if self.welcome else 0

    def write(self, data: bytes) -> None:
        """Any bytes."""
        self._writer.write(data)

    def send(self, *messages: wire.Message) -> None:
        """Right frames, in one piece."""
        self.write(b"".join(map(self.frame, messages)))

    def frame(self, message: wire.Message) -> bytes:
        """The next frame, to be written or changed."""
        frame = encode_frame(message, self.seq, self.vocabulary_size)
        self.seq = (self.seq + 1) & 0xFFFF
        return frame

    def raw(
        self,
        kind: int | type[wire.Message],
        body: bytes = b"",
        request: int = 0,
        flags: int = 0,
        length: int | None = None,
    ) -> bytes:
        """The next frame, with any header and body."""
        number = kind if isinstance(kind, int) else kind.TYPE
        whole = HEADER.size + len(body) if length is None else length
        frame = HEADER.pack(whole, number, flags, request, self.seq) + body
        self.seq = (self.seq + 1) & 0xFFFF
        return frame

    async def drip(self, data: bytes) -> None:
        """Bytes one by one, each in a segment of its own as far as TCP allows."""
        for byte in data:
            self.write(bytes([byte]))
            await self._writer.drain()
            await asyncio.sleep(0)

    async def goes_on(self) -> bool:
        """Whether what was sent is on its way: the connection stands, and the server takes it."""
        try:
            await asyncio.wait_for(self._writer.drain(), self.wait_s)
        except (ConnectionError, asyncio.TimeoutError):
            return False
        return True

    def end(self) -> None:
        """Close our half of the stream."""
        if not self._writer.can_write_eof():
            raise Skipped("a stream with TLS has no half to close")
        self._writer.write_eof()
        self._has_ended = True

    def hang_up(self) -> None:
        """Close at once."""
        self._writer.close()

    def stop_reading(self) -> None:
        """Leave everything that comes where it is."""
        link = self._writer.transport
        assert isinstance(link, asyncio.Transport), "a stream goes both ways"
        link.pause_reading()

    def has_mail(self, request: int) -> bool:
        """Whether a message for it has come and was not asked for yet."""
        return bool(self._mail[request])

    async def receive(self, request: int = 0) -> wire.Message:
        """The next message for a request, or for the connection. Pings are answered.

        A Reading is kept aside, and so are Adapters: they may come or not.
        """
        mail = self._mail[request]
        while not mail:
            message = await self._read()
            if message is None:
                raise Failed("the server closes the connection")
            if isinstance(message, wire.Error) and message.fatal and request:
                raise Failed(f"the server ends the connection: {message.sentence}")
            if isinstance(message, wire.Reading):
                self.readings[message.request].append(message)
            elif isinstance(message, wire.Adapters):
                self.adapters = message.each
            else:
                self._mail[message.request].append(message)
        return mail.popleft()

    async def expect(self, kind: type[Kind], request: int = 0) -> Kind:
        """The next message, which must be of this kind."""
        message = await self.receive(request)
        if not isinstance(message, kind):
            raise Failed(f"{_words(message)} comes where {kind.__name__} is due")
        return message

    async def refused(self, code: wire.ErrorCode) -> wire.Error:
        """A fatal Error with this code, and nothing after it."""
        message = await self.receive()
        if not isinstance(message, wire.Error) or not message.fatal:
            raise Failed(f"{_words(message)} comes where a fatal {code.name} is due")
        if message.code is not code:
            raise Failed(f"the code is {message.code.name}, not {code.name}: {message.sentence}")
        await self.ended()
        return message

    async def ended(self) -> None:
        """The connection is closed, without another frame."""
        message = await self._read()
        if message is not None:
            raise Failed(f"{_words(message)} comes after the end")

    async def is_alive(self) -> None:
        """The connection works, everything sent was handled, and nothing was said to it."""
        ping = wire.Ping(random.getrandbits(64))
        self.send(ping)
        pong = await self.expect(wire.Pong)
        if pong.nonce != ping.nonce:
            raise Failed(f"the Pong has nonce {pong.nonce}, the Ping had {ping.nonce}")
        for mail in self._mail.values():
            if mail:
                raise Failed(f"{_words(mail[0])} comes, and nothing should")

    async def _read(self) -> wire.Message | None:
        """The next message, None at the end of the stream; Pings are answered on the way."""
        while True:
            try:
                message = await asyncio.wait_for(self._read_frame(), self.wait_s)
            except asyncio.TimeoutError:
                sentence = f"nothing comes within {self.wait_s:g} s"
                raise Failed(sentence) from None
            if not isinstance(message, wire.Ping):
                self.at_end = message is None
                return message
            if not self._has_ended:  # the server may have asked before it heard of that
                self.send(wire.Pong(message.nonce))

    async def _read_frame(self) -> wire.Message | None:
        try:
            data = await self._reader.readexactly(HEADER.size)
            header = decode_header(data)
            if header.length > MOST_BYTES[wire.MESSAGE_TYPES[header.type]]:
                raise Failed(f"the server sends a frame of {header.length} bytes")
            body = await self._reader.readexactly(header.length - HEADER.size)
            message = decode_body(header, body, self.vocabulary_size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Failed("the server closes in the middle of a frame") from None
            return None
        except ConnectionError:
            return None
        except wire.ProtocolError as error:
            raise Failed(f"the server breaks the format: {error.sentence}") from None
        if header.seq != self._seq_due:
            raise Failed(f"the server's frame has seq {header.seq}, {self._seq_due} is due")
        self._seq_due = (self._seq_due + 1) & 0xFFFF
        return message

    async def greet(self) -> wire.Welcome:
        """Shake hands as an edge does."""
        await self.introduce()
        self.welcome = await self.expect(wire.Welcome)
        if wire.template_follows(self.hello, self.welcome):
            await self.template()
        return self.welcome

    async def introduce(self, **changes: Any) -> None:
        """Say Hello, with fields changed as told, and prove who we are if we are asked."""
        self.hello = replace(self.hello, **changes)
        self.send(self.hello)
        if self._target.token:
            self.send(wire.Proof(self.proof(await self.challenged())))

    async def template(self) -> wire.Template:
        """The Template, which must be the one that the Welcome tells of."""
        assert self.welcome is not None, "a Template before the Welcome"
        template = await self.expect(wire.Template)
        is_right = wire.template_hash(template.source) == self.welcome.template_hash
        if template.source and not is_right:
            raise Failed("the Template has another hash than the Welcome says")
        return template

    async def challenged(self) -> wire.Challenge:
        """The server's Challenge."""
        return await self.expect(wire.Challenge)

    def proof(self, challenge: wire.Challenge) -> bytes:
        """The edge's proof for it."""
        token, nonce = self._target.token, challenge.nonce
        return prove(token, Role.EDGE, self.hello, nonce, self.certificate)

    def is_proven(self, challenge: wire.Challenge) -> bool:
        """Whether the server has the token as well."""
        known = (self.hello, challenge.nonce, self.certificate)
        return is_proven(challenge.proof, self._target.token, Role.SERVER, *known)

    def prompt(self, tokens: int, seed: int = 1) -> tuple[int, ...]:
        """Ids of some prompt."""
        rng = random.Random(seed)
        return tuple(rng.randrange(min(self.vocabulary_size, 250)) for _ in range(tokens))

    def open(
        self,
        number: int = 1,
        prompt: Sequence[int] = (),
        rule: wire.Rule | None = None,
        constraint: wire.Constraint | None = None,
        **options: Any,
    ) -> "Request":
        """Open a request and send its prompt, of 5 tokens unless given; greedy, 16 tokens."""
        prompt = tuple(prompt) or self.prompt(5)
        message = opening(number, len(prompt), **options)
        between = [replace(one, request=number) for one in (rule, constraint) if one is not None]
        self.send(message, *between, wire.Prompt(number, prompt))
        return Request(self, message, prompt)


def opening(number: int = 1, prompt_tokens: int = 5, **options: Any) -> wire.Open:
    """An Open with ordinary parameters, or with these."""
    usual = wire.Open(number, 0, 0.0, 1.0, 0.0, 0, 16, prompt_tokens, (), 32)
    return replace(usual, **options)


@dataclass
class Request:
    """A request that follows the rules and holds the server to them."""

    peer: Peer
    params: wire.Open
    prompt: tuple[int, ...]
    answer: list[int] = field(default_factory=list)
    verdicts: list[wire.Verdict] = field(default_factory=list)
    granted_nodes: int | None = None  # while the edge has the turn
    _drafted: wire.Draft | None = None

    @property
    def number(self) -> int:
        return self.params.request

    @property
    def finish(self) -> wire.Finish:
        return self.verdicts[-1].finish if self.verdicts else wire.Finish.NONE

    def message(
        self, tokens: Sequence[int] = (), parents: Sequence[int] | None = None
    ) -> wire.Draft:
        """The Draft that is due, a chain unless told otherwise."""
        tree = tuple(range(len(tokens))) if parents is None else tuple(parents)
        base = len(self.prompt) + len(self.answer)
        return wire.Draft(self.number, len(self.verdicts), base, tuple(tokens), tree, 0)

    def draft(self, tokens: Sequence[int] = (), parents: Sequence[int] | None = None) -> None:
        """Send it."""
        self._drafted, self.granted_nodes = self.message(tokens, parents), None
        self.peer.send(self._drafted)

    def offer(self, tokens: Sequence[int], base: int = 0) -> None:
        """Send a chain that nobody asked for, behind the text as far as it has come."""
        base = base or len(self.prompt) + len(self.answer)
        self.peer.send(wire.Offer(self.number, base, tuple(tokens), tuple(range(len(tokens)))))

    async def verdict(self) -> wire.Verdict:
        """The next Verdict, checked against what it answers and added to the answer.

        The Logprobs before it are checked against it.
        """
        told = None
        if self.params.logprobs:
            told = await self.peer.expect(wire.Logprobs, self.number)
        verdict = await self.peer.receive(self.number)
        if not isinstance(verdict, wire.Verdict):
            raise Failed(f"{_words(verdict)} comes where a Verdict is due")
        if verdict.round != len(self.verdicts):
            raise Failed(f"the Verdict has round {verdict.round}, {len(self.verdicts)} is due")
        brought = [*self._path(verdict.node), verdict.bonus]
        if told is not None:
            self._check_logprobs(told, brought)
        self.answer += brought
        self.verdicts.append(verdict)
        self._drafted = None
        is_early = len(self.answer) < self.params.max_tokens
        if (
            self.finish is wire.Finish.STOP
            and is_early
            and verdict.bonus not in self.params.stop_ids
        ):
            raise Skipped("the target's own stop id ends this answer early")
        if verdict.turn is wire.Turn.EDGE:
            self._granted(verdict)
        return verdict

    def _check_logprobs(self, told: wire.Logprobs, tokens: Sequence[int]) -> None:
        """As many as the Verdict brings, with as many likeliest ones each, and these in order."""
        each = min(self.params.logprobs - 1, self.peer.vocabulary_size)
        if (len(told.logprobs), len(told.top_ids)) != (len(tokens), each * len(tokens)):
            raise Failed(f"{len(told.logprobs)} Logprobs come with {len(tokens)} tokens")
        for place, token in enumerate(tokens):
            listed = range(place * each, (place + 1) * each)
            values = [told.top_logprobs[index] for index in listed]
            if values != sorted(values, reverse=True):
                raise Failed("the likeliest tokens do not come first")
            known = {told.top_ids[index]: told.top_logprobs[index] for index in listed}
            if known.get(token, told.logprobs[place]) != told.logprobs[place]:
                raise Failed(f"token {token} has two log-probabilities")

    def needs_turn(self) -> None:
        """Skip the case if this request's edge was never asked for a draft."""
        if all(verdict.turn is wire.Turn.SERVER for verdict in self.verdicts):
            raise Skipped(NO_TURN)

    async def turn(self, nodes: int = 0) -> int:
        """Wait until a chain of `nodes` nodes may be sent; the nodes allowed. Skipped if never."""
        while True:
            while self.granted_nodes is None and not self.finish:
                await self.advance()
            if self.finish:
                raise Skipped(NO_TURN + (f" with {nodes} nodes" if nodes else ""))
            room = self.params.max_tokens - len(self.answer) - 1
            if self.granted_nodes is not None and min(self.granted_nodes, room) >= nodes:
                return self.granted_nodes
            self.draft()

    async def rest(self) -> list[int]:
        """The answer to its end, without drafts, and the Close."""
        while not self.finish:
            if self.granted_nodes is not None:
                self.draft()
            await self.advance()
        self.close()
        return self.answer

    async def failed(self, *codes: wire.ErrorCode) -> wire.Error:
        """An Error that ends this request alone, with one of these codes; and our Close."""
        error = await self.peer.receive(self.number)
        if not isinstance(error, wire.Error) or error.code not in codes:
            names = " or ".join(code.name for code in codes)
            raise Failed(f"{_words(error)} comes where an Error {names} is due")
        self.close()
        return error

    async def cancel(self) -> None:
        """Close a running request, and wait for the server's word."""
        self.close()
        while True:
            word = await self.peer.receive(self.number)
            if isinstance(word, wire.Close | wire.Error):
                return
            if isinstance(word, wire.Verdict) and word.finish:
                return

    def close(self) -> None:
        """Say that it is over."""
        self.peer.send(wire.Close(self.number))

    async def advance(self) -> None:
        """A Verdict, or the Credit that the last one promised."""
        if self.verdicts and self.verdicts[-1].turn is wire.Turn.WAIT and not self._drafted:
            self._granted(await self.peer.expect(wire.Credit, self.number))
        else:
            await self.verdict()

    def _granted(self, grant: wire.Verdict | wire.Credit) -> None:
        assert self.peer.welcome is not None, "a request before the Welcome"
        most = min(self.params.max_nodes, self.peer.welcome.max_nodes)
        if grant.max_nodes > most or not most:
            raise Failed(f"the turn allows {grant.max_nodes} nodes, the request {most}")
        self.granted_nodes = grant.max_nodes

    def _path(self, node: int) -> list[int]:
        """The drafted tokens from the root to a node."""
        tokens, parents = (
            (self._drafted.tokens, self._drafted.parents) if self._drafted else ((), ())
        )
        if node > len(tokens):
            raise Failed(f"node {node} of a tree of {len(tokens)} is accepted")
        path: list[int] = []
        while node:
            path.append(tokens[node - 1])
            node = parents[node - 1]
        return path[::-1]


async def plain_answer(visitor: Visitor, prompt: Sequence[int] = (), **options: Any) -> list[int]:
    """What the server answers without drafts, on a connection of its own."""
    peer = await visitor.admitted()
    answer = await peer.open(1, prompt, max_nodes=0, **options).rest()
    with suppress(OSError):
        peer.hang_up()
    return answer


def _words(message: wire.Message) -> str:
    kind = type(message).__name__
    if isinstance(message, wire.Error):
        fatal = "a fatal" if message.fatal else "an"
        return f"{fatal} {kind} {message.code.name} ({message.sentence})"
    return f"a {kind}"
