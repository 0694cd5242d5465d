"""Who may send what, when: the states of a connection and of a request, as plain data.

`connection` walks these tables; documentation can be printed from them. No code here.

How a request ends. Each end says so exactly once. The edge's word is Close: sent by its caller to
cancel, and by the connection itself after the server's word. The server's word is a Verdict that
finishes, an Error for the request, or, sent by the connection itself, a Close that answers a
cancelling Close. An end that has given its word drops what still comes for the request, without
delivering it. Once both words are out the number is unused, and the edge may open it again:
whatever was sent for the old request, in either direction, has arrived before.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from runtime.wire.messages import (
    Adapter,
    Adapters,
    Challenge,
    Close,
    Constraint,
    Credit,
    Draft,
    Error,
    Hello,
    Logprobs,
    Message,
    Offer,
    Open,
    Ping,
    Pong,
    Prompt,
    Proof,
    Reading,
    Redirect,
    Rule,
    Template,
    Verdict,
    Welcome,
)


class _Named(Enum):
    """Members that are found in a table by what they are: to hash their names would cost more."""

    __hash__ = object.__hash__


class Role(_Named):
    """The two ends of a connection."""

    EDGE = "edge"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.EDGE else Role.EDGE


class ConnectionState(_Named):
    """What a connection waits for."""

    HELLO_DUE = "the edge's Hello is due"
    WELCOME_DUE = "the server's Welcome is due"
    PROOF_DUE = "the edge's Proof is due"
    ADMISSION_DUE = "the server's Welcome is due, after the edge's Proof"
    TEMPLATE_DUE = "the server's Template is due"
    OPEN = "requests may come and go"
    CLOSED = "a fatal Error or a fault has ended it"


class RequestState(_Named):
    """What a request waits for."""

    UNUSED = "no request has this number"
    PROMPTING = "the edge sends the prompt"
    VERIFYING = "the server owes a Verdict"
    DRAFTING = "the edge drafts"
    WAITING = "the edge drafts and waits for a Credit"
    FINISHED = "the server has ended it; the edge's Close is due"
    CLOSING = "the edge has ended it; the server's last word is due"


class Move(NamedTuple):
    """A message in a state: the key of both tables."""

    state: ConnectionState | RequestState
    sender: Role
    message: type[Message]


# Where more than one state may follow, the content of the message decides.
CONNECTION_TABLE: Mapping[Move, tuple[ConnectionState, ...]] = {
    Move(ConnectionState.HELLO_DUE, Role.EDGE, Hello): (ConnectionState.WELCOME_DUE,),
    Move(ConnectionState.HELLO_DUE, Role.EDGE, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.HELLO_DUE, Role.SERVER, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.WELCOME_DUE, Role.SERVER, Welcome): (
        ConnectionState.OPEN,
        ConnectionState.TEMPLATE_DUE,
    ),
    Move(ConnectionState.WELCOME_DUE, Role.EDGE, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.WELCOME_DUE, Role.SERVER, Challenge): (ConnectionState.PROOF_DUE,),
    Move(ConnectionState.WELCOME_DUE, Role.SERVER, Redirect): (ConnectionState.CLOSED,),
    Move(ConnectionState.WELCOME_DUE, Role.SERVER, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.PROOF_DUE, Role.EDGE, Proof): (ConnectionState.ADMISSION_DUE,),
    Move(ConnectionState.PROOF_DUE, Role.EDGE, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.PROOF_DUE, Role.SERVER, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.ADMISSION_DUE, Role.SERVER, Welcome): (
        ConnectionState.OPEN,
        ConnectionState.TEMPLATE_DUE,
    ),
    Move(ConnectionState.ADMISSION_DUE, Role.SERVER, Redirect): (ConnectionState.CLOSED,),
    Move(ConnectionState.ADMISSION_DUE, Role.EDGE, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.ADMISSION_DUE, Role.SERVER, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.TEMPLATE_DUE, Role.SERVER, Template): (ConnectionState.OPEN,),
    Move(ConnectionState.TEMPLATE_DUE, Role.EDGE, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.TEMPLATE_DUE, Role.SERVER, Error): (ConnectionState.CLOSED,),
    Move(ConnectionState.OPEN, Role.EDGE, Open): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Rule): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Constraint): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Adapter): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Prompt): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Draft): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Offer): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Close): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Ping): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Pong): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.EDGE, Error): (ConnectionState.OPEN, ConnectionState.CLOSED),
    Move(ConnectionState.OPEN, Role.SERVER, Adapters): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Reading): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Logprobs): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Verdict): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Credit): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Close): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Ping): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Pong): (ConnectionState.OPEN,),
    Move(ConnectionState.OPEN, Role.SERVER, Error): (ConnectionState.OPEN, ConnectionState.CLOSED),
}

REQUEST_TABLE: Mapping[Move, tuple[RequestState, ...]] = {
    Move(RequestState.UNUSED, Role.EDGE, Open): (RequestState.PROMPTING,),
    Move(RequestState.PROMPTING, Role.EDGE, Rule): (RequestState.PROMPTING,),
    Move(RequestState.PROMPTING, Role.EDGE, Constraint): (RequestState.PROMPTING,),
    Move(RequestState.PROMPTING, Role.EDGE, Adapter): (RequestState.PROMPTING,),
    Move(RequestState.PROMPTING, Role.EDGE, Prompt): (
        RequestState.PROMPTING,
        RequestState.VERIFYING,
    ),
    Move(RequestState.PROMPTING, Role.EDGE, Close): (RequestState.CLOSING,),
    Move(RequestState.PROMPTING, Role.SERVER, Error): (RequestState.FINISHED,),
    Move(RequestState.VERIFYING, Role.EDGE, Offer): (RequestState.VERIFYING,),
    Move(RequestState.VERIFYING, Role.EDGE, Close): (RequestState.CLOSING,),
    Move(RequestState.VERIFYING, Role.SERVER, Reading): (RequestState.VERIFYING,),
    Move(RequestState.VERIFYING, Role.SERVER, Logprobs): (RequestState.VERIFYING,),
    Move(RequestState.VERIFYING, Role.SERVER, Verdict): (
        RequestState.VERIFYING,
        RequestState.DRAFTING,
        RequestState.WAITING,
        RequestState.FINISHED,
    ),
    Move(RequestState.VERIFYING, Role.SERVER, Error): (RequestState.FINISHED,),
    Move(RequestState.DRAFTING, Role.EDGE, Draft): (RequestState.VERIFYING,),
    # Under way when the server gave the turn.
    Move(RequestState.DRAFTING, Role.EDGE, Offer): (RequestState.DRAFTING,),
    Move(RequestState.DRAFTING, Role.EDGE, Close): (RequestState.CLOSING,),
    Move(RequestState.DRAFTING, Role.SERVER, Error): (RequestState.FINISHED,),
    Move(RequestState.WAITING, Role.SERVER, Credit): (RequestState.DRAFTING,),
    Move(RequestState.WAITING, Role.EDGE, Offer): (RequestState.WAITING,),
    Move(RequestState.WAITING, Role.EDGE, Close): (RequestState.CLOSING,),
    Move(RequestState.WAITING, Role.SERVER, Error): (RequestState.FINISHED,),
    # These were under way when the receiver gave its own last word.
    Move(RequestState.FINISHED, Role.EDGE, Rule): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Constraint): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Adapter): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Prompt): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Draft): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Offer): (RequestState.FINISHED,),
    Move(RequestState.FINISHED, Role.EDGE, Close): (RequestState.UNUSED,),
    Move(RequestState.CLOSING, Role.SERVER, Reading): (RequestState.CLOSING,),
    Move(RequestState.CLOSING, Role.SERVER, Logprobs): (RequestState.CLOSING,),
    Move(RequestState.CLOSING, Role.SERVER, Verdict): (RequestState.CLOSING, RequestState.UNUSED),
    Move(RequestState.CLOSING, Role.SERVER, Credit): (RequestState.CLOSING,),
    Move(RequestState.CLOSING, Role.SERVER, Error): (RequestState.UNUSED,),
    Move(RequestState.CLOSING, Role.SERVER, Close): (RequestState.UNUSED,),
}
