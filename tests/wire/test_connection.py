"""Two ends in memory: who may send what when, however the bytes are cut and the frames cross."""

import random
from collections import deque
from dataclasses import replace

import pytest

from runtime.wire.connection import (
    CONNECTION_TABLE,
    SESSION_TABLE,
    Connection,
    Phase,
    Role,
    State,
)
from runtime.wire.messages import (
    HEADER,
    MAX_PROMPT_FRAME_BYTES,
    MESSAGE_TYPES,
    Close,
    Draft,
    Error,
    ErrorCode,
    Finish,
    Hello,
    Open,
    Ping,
    Pong,
    Prompt,
    ProtocolError,
    Verdict,
    Welcome,
    decode_body,
    decode_header,
    encode_frame,
)
from tests.wire.cases import (
    CONVERSATION,
    HELLO,
    VOCABULARY,
    WELCOME,
    connected,
    draft,
    opening,
    verdict,
)

FATAL = Error(0, ErrorCode.INTERNAL, True, "out of memory")
NOTICE = Error(0, ErrorCode.DRAINING, False, "stopping soon")


def frames(data, vocabulary=VOCABULARY):
    """The messages of whole frames, whatever the state of any connection."""
    found = []
    while data:
        header = decode_header(data)
        found.append(decode_body(header, data[HEADER.size : header.length], vocabulary))
        data = data[header.length :]
    return found


def pass_on(sender, receiver, message):
    """Send one message and let both ends answer until they are quiet."""
    delivered = receiver.receive(sender.send(message))
    back, forth = receiver.data_to_send(), b""
    while back or forth:
        sender.receive(back)
        forth = sender.data_to_send()
        receiver.receive(forth)
        back = receiver.data_to_send()
    return delivered


def inject(receiver, message):
    """Give a connection a frame that its peer would not send."""
    seq = receiver.frames_received & 0xFFFF
    return receiver.receive(encode_frame(message, seq, VOCABULARY))


def converse():
    """The shared conversation: what each end sent, as frames, and what it was delivered."""
    edge, server = Connection(Role.EDGE), Connection(Role.SERVER)
    sent, delivered = {edge: b"", server: b""}, {edge: [], server: []}
    ends = {Role.EDGE: (edge, server), Role.SERVER: (server, edge)}
    for role, message in CONVERSATION:
        sender, receiver = ends[role]
        data = sender.send(message)
        while data:
            sent[sender] += data
            delivered[receiver] += receiver.receive(data)
            sender, receiver, data = receiver, sender, receiver.data_to_send()
    return edge, server, sent, delivered


# --- a conversation ---


def test_a_conversation_arrives_as_it_was_sent():
    edge, server, _, delivered = converse()
    for role, receiver in ((Role.EDGE, server), (Role.SERVER, edge)):
        said = [message for sender, message in CONVERSATION if sender is role]
        assert delivered[receiver] == [
            message for message in said if not isinstance(message, Ping)
        ] + ([Pong(0)] if role is Role.EDGE else [Pong(2**64 - 1)]) or _same_but_for_pongs(
            said, delivered[receiver]
        )
    assert edge.state is server.state is State.CLOSED
    assert (edge.hello, edge.welcome) == (server.hello, server.welcome) == (HELLO, WELCOME)


def _same_but_for_pongs(said, delivered):
    pongs = [message for message in delivered if isinstance(message, Pong)]
    others = [message for message in delivered if not isinstance(message, Pong)]
    return len(pongs) == 1 and others == [m for m in said if not isinstance(m, Ping)]
