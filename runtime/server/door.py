"""The door of the server: which connections are let in, and under whose name.

A peer is a stranger until it is welcomed. Where the server has users, a stranger has to prove that
it has a user's token, and until then learns nothing of the server but its protocol. Knows nothing
of requests; time is an argument.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from runtime.config import ServerConfig
from runtime.server.router import Router
from runtime.server.users import Patience
from runtime.wire import messages as wire
from runtime.wire.auth import NO_CERTIFICATE, challenge, is_proven
from runtime.wire.connection import Role
from runtime.wire.tcp import FramedProtocol, Speakers
from runtime.wire.vocabulary import other_vocabulary, same_vocabulary

NOBODY = ""  # the name of everyone where there are no users
TOLD_TO_GO = 32  # connections beyond all others, each for a second at most


@dataclass(frozen=True)
class Identity:
    """What makes a text the target's. Both sides must mean the same by the same ids.

    vocabulary_size   rows of the target's embedding: all ids are below it
    vocabulary_hash   what the ids below a number of rows stand for, 16 bytes
    max_context       tokens of prompt and answer
    stop_ids          the target's own, which end every answer
    template          its chat template, None where it has none
    adapters          names of those that requests may have
    """

    model: str
    vocabulary_size: int
    vocabulary_hash: Callable[[int], bytes]
    max_context: int
    stop_ids: frozenset[int]
    template: str | None
    adapters: tuple[str, ...] = ()


@dataclass
class Door:
    """Strangers and admitted peers. `users` maps names to tokens; None lets everyone in.

    At most `room` are connected, whoever they are, beside some that are being told to go. Without
    an identity there is no model behind the door, and everyone is sent on by the router.
    """

    config: ServerConfig
    identity: Identity | None
    users: Mapping[str, bytes] | None = None
    certificate: bytes = NO_CERTIFICATE
    room: int = sys.maxsize
    router: Router | None = None
    admitted: dict[FramedProtocol, str] = field(default_factory=dict)  # peer -> user
    revoked: set[FramedProtocol] = field(default_factory=set)  # of these: their token holds no more
    _connections: Counter[str] = field(default_factory=Counter)  # admitted, by user
    # by the hash of the certificate when they came, which their proofs are bound to
    _strangers: dict[FramedProtocol, bytes] = field(default_factory=dict)
    _patience: Patience = field(default_factory=Patience)
    _speakers: Speakers = field(default_factory=Speakers)

    def peers(self) -> list[FramedProtocol]:
        """Everyone who is connected."""
        return [*self._strangers, *self.admitted]

    def new_peer(
        self,
        on_message: Callable[[FramedProtocol, wire.Message], None],
        on_closed: Callable[[FramedProtocol, str | None], None],
    ) -> FramedProtocol:
        """A protocol for one more connection; told to go if too many strangers are there."""
        return FramedProtocol(
            Role.SERVER,
            on_message,
            on_closed,
            on_connected=self._arrived,
            speakers=self._speakers,
        )

    def left(self, peer: FramedProtocol) -> None:
        """The connection has gone."""
        self._strangers.pop(peer, None)
        self.revoked.discard(peer)
        if (user := self.admitted.pop(peer, None)) is not None:
            self._connections[user] -= 1
            if not self._connections[user]:
                del self._connections[user]

    def renew(self, users: Mapping[str, bytes] | None, certificate: bytes) -> list[FramedProtocol]:
        """From now on these hold; who was admitted with a token that holds no more."""
        before, self.users, self.certificate = self.users or {}, users, certificate
        now = users or {}
        changed = {name for name, token in before.items() if now.get(name) != token}
        self.revoked |= {peer for peer, user in self.admitted.items() if user in changed}
        return list(self.revoked)

    def answer(self, peer: FramedProtocol, greeting: wire.Hello | wire.Proof, now_s: float) -> None:
        """Challenge, welcome or refuse a stranger."""
        match greeting:
            case wire.Hello():
                self._answer_hello(peer, greeting, now_s)
            case wire.Proof():
                self._answer_proof(peer, greeting, now_s)

    def _answer_hello(self, peer: FramedProtocol, hello: wire.Hello, now_s: float) -> None:
        if self.users is None:
            self._welcome(peer, hello)
        elif wait_s := self._patience.wait_s(peer.host, now_s):
            sentence = f"too many wrong tokens from {peer.host}; try again in {math.ceil(wait_s)} s"
            peer.refuse(wire.ErrorCode.BUSY, sentence)
        else:
            peer.send(challenge(self.users.get(hello.user), hello, self._strangers[peer]))

    def _answer_proof(self, peer: FramedProtocol, message: wire.Proof, now_s: float) -> None:
        hello, challenged = peer.connection.hello, peer.connection.challenge
        assert self.users is not None, "a proof was asked for without users"
        assert hello is not None, "a proof before the Hello"
        assert challenged is not None, "a proof before the Challenge"
        token = self.users.get(hello.user)
        # An unknown user costs the same time as a wrong token: names cannot be found by asking.
        proven = is_proven(
            message.proof, token or b"", Role.EDGE, hello, challenged.nonce, self._strangers[peer]
        )
        if token is not None and proven:
            self._patience.succeeded(peer.host)
            self._welcome(peer, hello)
            return
        self._patience.failed(peer.host, now_s)
        sentence = (
            f"the token of user {hello.user!r} is not right" if hello.user
            else "this server wants to know who you are: give --user and --token-file"
        )  # fmt: skip
        peer.refuse(wire.ErrorCode.AUTHENTICATION, sentence)

    def _arrived(self, peer: FramedProtocol) -> str | None:
        """Count a stranger: not before, as one that fails in TLS never tells that it left.

        Returns why it must go, if it must.
        """
        connected, strangers = len(self._strangers) + len(self.admitted), len(self._strangers)
        self._strangers[peer] = self.certificate
        if connected >= self.room + TOLD_TO_GO:
            peer.abort()  # there is not even room for a word
        elif connected >= self.room:
            return _full(len(self.admitted))
        elif strangers >= self.config.max_strangers:
            return "too many edges are connecting; try again in a few seconds"
        return None

    def _no_place(self, user: str) -> str | None:
        """Why one more edge of this user cannot be admitted, if it cannot."""
        if len(self.admitted) >= self.config.max_connections:
            return _full(len(self.admitted))
        of_user, most = self._connections[user], self.config.max_user_connections
        if user != NOBODY and of_user >= most:
            return f"{of_user} edges of user {user!r} are connected, as many as one user may have"
        return None

    def _welcome(self, peer: FramedProtocol, hello: wire.Hello) -> None:
        if self.identity is None:
            self._send_on(peer, hello)
            return
        mine, welcome = self.identity, replace(self.welcome, version=hello.version)
        if not same_vocabulary(hello, mine.vocabulary_size, mine.vocabulary_hash):
            peer.refuse(wire.ErrorCode.VOCABULARY, other_vocabulary(hello, welcome))
            return
        user = hello.user if self.users is not None else NOBODY
        if sentence := self._no_place(user):
            peer.refuse(wire.ErrorCode.BUSY, sentence)
            return
        del self._strangers[peer]
        self.admitted[peer] = user
        self._connections[user] += 1
        peer.send(welcome)
        if wire.template_follows(hello, welcome):
            assert mine.template is not None, "a template follows where there is none"
            peer.send(wire.Template.of(mine.template))
        if mine.adapters:
            peer.send(wire.Adapters(" ".join(mine.adapters)))

    def _send_on(self, peer: FramedProtocol, hello: wire.Hello) -> None:
        assert self.router is not None, "neither a model nor replicas"
        # Without users, the machine is what an edge has in common with itself when it comes back.
        replica = self.router.choose(hello.user if self.users is not None else peer.host)
        if replica is None:
            sentence = "no replica takes edges now; try again in a few seconds"
            peer.refuse(wire.ErrorCode.BUSY, sentence)
            return
        host, port = replica.address.edges
        peer.send(wire.Redirect(port, host))

    @property
    def welcome(self) -> wire.Welcome:
        """What every edge is told that is admitted, where there is a model."""
        mine = self.identity
        assert mine is not None, "a welcome where there is no model"
        return wire.Welcome(
            version=wire.VERSION,
            vocabulary_size=mine.vocabulary_size,
            vocabulary_hash=mine.vocabulary_hash(mine.vocabulary_size),
            max_nodes=self.config.max_nodes,
            max_context=mine.max_context,
            max_requests=min(
                self.config.max_requests + self.config.max_waiting, self.config.max_user_requests
            ),
            model=mine.model,
            template_hash=wire.template_hash(mine.template),
        )


def _full(edges: int) -> str:
    return f"{edges} edges are connected, as many as this server takes; try again in a while"
