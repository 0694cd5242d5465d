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


class State(_Named):
    """What a connection waits for."""

    HELLO_DUE = "the edge's Hello is due"
    WELCOME_DUE = "the server's Welcome is due"
    PROOF_DUE = "the edge's Proof is due"
    ADMISSION_DUE = "the server's Welcome is due, after the edge's Proof"
    TEMPLATE_DUE = "the server's Template is due"
    OPEN = "requests may come and go"
    CLOSED = "a fatal Error or a fault has ended it"


class Phase(_Named):
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

    state: State | Phase
    sender: Role
    message: type[Message]


# Where more than one state may follow, the content of the message decides.
CONNECTION_TABLE: Mapping[Move, tuple[State, ...]] = {
    Move(State.HELLO_DUE, Role.EDGE, Hello): (State.WELCOME_DUE,),
    Move(State.HELLO_DUE, Role.EDGE, Error): (State.CLOSED,),
    Move(State.HELLO_DUE, Role.SERVER, Error): (State.CLOSED,),
    Move(State.WELCOME_DUE, Role.SERVER, Welcome): (State.OPEN, State.TEMPLATE_DUE),
    Move(State.WELCOME_DUE, Role.EDGE, Error): (State.CLOSED,),
    Move(State.WELCOME_DUE, Role.SERVER, Challenge): (State.PROOF_DUE,),
    Move(State.WELCOME_DUE, Role.SERVER, Redirect): (State.CLOSED,),
    Move(State.WELCOME_DUE, Role.SERVER, Error): (State.CLOSED,),
    Move(State.PROOF_DUE, Role.EDGE, Proof): (State.ADMISSION_DUE,),
    Move(State.PROOF_DUE, Role.EDGE, Error): (State.CLOSED,),
    Move(State.PROOF_DUE, Role.SERVER, Error): (State.CLOSED,),
    Move(State.ADMISSION_DUE, Role.SERVER, Welcome): (State.OPEN, State.TEMPLATE_DUE),
    Move(State.ADMISSION_DUE, Role.SERVER, Redirect): (State.CLOSED,),
    Move(State.ADMISSION_DUE, Role.EDGE, Error): (State.CLOSED,),
    Move(State.ADMISSION_DUE, Role.SERVER, Error): (State.CLOSED,),
    Move(State.TEMPLATE_DUE, Role.SERVER, Template): (State.OPEN,),
    Move(State.TEMPLATE_DUE, Role.EDGE, Error): (State.CLOSED,),
    Move(State.TEMPLATE_DUE, Role.SERVER, Error): (State.CLOSED,),
    Move(State.OPEN, Role.EDGE, Open): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Rule): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Constraint): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Adapter): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Prompt): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Draft): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Offer): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Close): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Ping): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Pong): (State.OPEN,),
    Move(State.OPEN, Role.EDGE, Error): (State.OPEN, State.CLOSED),
    Move(State.OPEN, Role.SERVER, Adapters): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Reading): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Logprobs): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Verdict): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Credit): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Close): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Ping): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Pong): (State.OPEN,),
    Move(State.OPEN, Role.SERVER, Error): (State.OPEN, State.CLOSED),
}

REQUEST_TABLE: Mapping[Move, tuple[Phase, ...]] = {
    Move(Phase.UNUSED, Role.EDGE, Open): (Phase.PROMPTING,),
    Move(Phase.PROMPTING, Role.EDGE, Rule): (Phase.PROMPTING,),
    Move(Phase.PROMPTING, Role.EDGE, Constraint): (Phase.PROMPTING,),
    Move(Phase.PROMPTING, Role.EDGE, Adapter): (Phase.PROMPTING,),
    Move(Phase.PROMPTING, Role.EDGE, Prompt): (Phase.PROMPTING, Phase.VERIFYING),
    Move(Phase.PROMPTING, Role.EDGE, Close): (Phase.CLOSING,),
    Move(Phase.PROMPTING, Role.SERVER, Error): (Phase.FINISHED,),
    Move(Phase.VERIFYING, Role.EDGE, Offer): (Phase.VERIFYING,),
    Move(Phase.VERIFYING, Role.EDGE, Close): (Phase.CLOSING,),
    Move(Phase.VERIFYING, Role.SERVER, Reading): (Phase.VERIFYING,),
    Move(Phase.VERIFYING, Role.SERVER, Logprobs): (Phase.VERIFYING,),
    Move(Phase.VERIFYING, Role.SERVER, Verdict): (
        Phase.VERIFYING,
        Phase.DRAFTING,
        Phase.WAITING,
        Phase.FINISHED,
    ),
    Move(Phase.VERIFYING, Role.SERVER, Error): (Phase.FINISHED,),
    Move(Phase.DRAFTING, Role.EDGE, Draft): (Phase.VERIFYING,),
    # Under way when the server gave the turn.
    Move(Phase.DRAFTING, Role.EDGE, Offer): (Phase.DRAFTING,),
    Move(Phase.DRAFTING, Role.EDGE, Close): (Phase.CLOSING,),
    Move(Phase.DRAFTING, Role.SERVER, Error): (Phase.FINISHED,),
    Move(Phase.WAITING, Role.SERVER, Credit): (Phase.DRAFTING,),
    Move(Phase.WAITING, Role.EDGE, Offer): (Phase.WAITING,),
    Move(Phase.WAITING, Role.EDGE, Close): (Phase.CLOSING,),
    Move(Phase.WAITING, Role.SERVER, Error): (Phase.FINISHED,),
    # These were under way when the receiver gave its own last word.
    Move(Phase.FINISHED, Role.EDGE, Rule): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Constraint): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Adapter): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Prompt): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Draft): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Offer): (Phase.FINISHED,),
    Move(Phase.FINISHED, Role.EDGE, Close): (Phase.UNUSED,),
    Move(Phase.CLOSING, Role.SERVER, Reading): (Phase.CLOSING,),
    Move(Phase.CLOSING, Role.SERVER, Logprobs): (Phase.CLOSING,),
    Move(Phase.CLOSING, Role.SERVER, Verdict): (Phase.CLOSING, Phase.UNUSED),
    Move(Phase.CLOSING, Role.SERVER, Credit): (Phase.CLOSING,),
    Move(Phase.CLOSING, Role.SERVER, Error): (Phase.UNUSED,),
    Move(Phase.CLOSING, Role.SERVER, Close): (Phase.UNUSED,),
}
