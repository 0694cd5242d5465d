"""Garbage, mutations and truncations: nothing but messages and ProtocolErrors, in bounded memory.

Seeded random loops, so that every run tries the same tens of thousands of cases.
"""

import random
import struct
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest

from runtime.wire.connection import Connection, ConnectionState, Role
from runtime.wire.frames import (
    HEADER,
    MAX_LONG_FRAME_BYTES,
    decode_body,
    decode_header,
    encode_frame,
)
from runtime.wire.messages import (
    MESSAGE_TYPES,
    Draft,
    Error,
    Offer,
    Open,
    Pong,
    Prompt,
    ProtocolError,
)
from tests.wire.cases import (
    CHALLENGE,
    CONVERSATION,
    HELLO,
    PROOF,
    REDIRECT,
    VOCABULARY,
    connected,
    opening,
)

BODIES = 15_000
CONVERSATIONS = 4_000
ASKING = [(Role.EDGE, replace(HELLO, version=2)), (Role.SERVER, CHALLENGE), (Role.EDGE, PROOF)]
SPOKEN = (CONVERSATION, ASKING + CONVERSATION[1:], [*ASKING, (Role.SERVER, REDIRECT)])


def mutate(data, rng):
    """Data with one fault: a flip, a cut, an insertion, a repetition, or fields at their limits."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(7):
        case 0:
            bit = rng.randrange(len(data) * 8)
            return bytes(b ^ (1 << bit % 8 if i == bit // 8 else 0) for i, b in enumerate(data))
        case 1:
            return data[:at]
        case 2:
            return data[:at] + rng.randbytes(rng.randint(1, 12)) + data[at:]
        case 3:
            return data[:at] + data[at + rng.randint(1, 12) :]
        case 4:
            return data + data[at:]
        case 5:
            return data[:at] + rng.choice((b"\xff\xff", b"\x00\x00", b"\xff")) + data[at + 2 :]
        case _:
            return rng.randbytes(rng.randint(1, 600))


def pieces(data, rng):
    """Data in one piece, or cut at random."""
    if rng.random() < 0.5 or len(data) < 2:
        return [data]
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randint(1, 4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_a_body_is_refused_or_is_the_one_encoding_of_its_message():
    rng = random.Random(1)
    bodies = [
        (message.TYPE, encode_frame(message, 0, VOCABULARY)[HEADER.size :])
        for _, message in [*CONVERSATION, *SPOKEN[2], (Role.EDGE, Pong(3))]
    ]
    decoded, refused = Counter(), Counter()
    for case in range(BODIES):
        kind, body = rng.choice(bodies)
        if case % 3 == 0:
            kind = rng.choice(list(MESSAGE_TYPES))
        body = mutate(body, rng) if body else rng.randbytes(rng.randint(0, 40))
        request = rng.choice((0, 1, 65_535))
        frame = HEADER.pack(HEADER.size + len(body), kind, 0, request, case & 0xFFFF) + body
        try:
            message = decode_body(decode_header(frame), body, VOCABULARY)
        except ProtocolError:
            refused[kind] += 1
            continue
        decoded[kind] += 1
        assert encode_frame(message, case & 0xFFFF, VOCABULARY) == frame
    assert decoded.total() > BODIES // 20
    assert set(decoded) == set(refused) == set(MESSAGE_TYPES)


def converse_with_a_fault(rng):
    """A conversation with one frame spoilt; the end that received it, and its fault."""
    ends = {role: Connection(role) for role in Role}
    spoken = rng.choice(SPOKEN)
    spoilt = rng.randrange(len(spoken))
    for number, (role, message) in enumerate(spoken):
        sender, receiver = ends[role], ends[role.peer]
        try:
            data = sender.send(message)
        except ValueError:
            # What went before was understood otherwise than it was meant.
            return receiver, None
        try:
            for piece in pieces(mutate(data, rng) if number == spoilt else data, rng):
                receiver.receive(piece)
                assert receiver.buffered_bytes < MAX_LONG_FRAME_BYTES
            sender.receive(receiver.data_to_send())
            receiver.receive(sender.data_to_send())
        except ProtocolError as fault:
            return receiver, fault
    return receiver, None


def test_a_spoilt_conversation_ends_in_a_protocol_error_or_goes_on():
    rng = random.Random(2)
    faults = 0
    for _ in range(CONVERSATIONS):
        end, fault = converse_with_a_fault(rng)
        if fault is None or end.state is not ConnectionState.CLOSED:
            continue
        faults += 1
        assert end.buffered_bytes == 0
        with pytest.raises(ProtocolError):
            end.receive(b"")
    assert faults > CONVERSATIONS // 3


def test_a_spoilt_stream_gives_the_same_however_it_is_cut():
    rng = random.Random(3)
    for _ in range(2_000):
        edge, _ = connected()
        said = [opening(1), Prompt(1, (1, 2, 3)), opening(2), opening(3)]
        stream = mutate(b"".join(map(edge.send, said)), rng)
        outcomes = []
        for cut in (
            lambda data: [data],
            lambda data: pieces(data, rng),
            lambda data: list(map(bytes, zip(data))),
        ):
            outcomes.append(outcome(cut(stream)))
        assert outcomes[0] == outcomes[1] == outcomes[2]


def outcome(chunks):
    """Every message delivered, the fault, and the bytes left over and owed."""
    _, server = connected()
    heard, fault = [], None
    for chunk in chunks:
        server.feed(chunk)
        try:
            while (message := server.next_message()) is not None:
                heard.append(message)
        except ProtocolError as error:
            fault = (error.code, error.sentence)
    return heard, fault, server.buffered_bytes, server.data_to_send()


@pytest.mark.parametrize("role", Role)
def test_pure_noise(role):
    rng = random.Random(4)
    for _ in range(2_000):
        end = Connection(role)
        noise = rng.randbytes(rng.randint(8, 200))
        with pytest.raises(ProtocolError):
            end.receive(noise)


def peak_bytes(action):
    """Bytes allocated at the highest point of an action."""
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()


def refuse(end, data):
    def action():
        with pytest.raises(ProtocolError):
            end.receive(data)

    return action


@pytest.mark.parametrize(
    ("kind", "layout", "fields"),
    [
        (Prompt, "<H", (65_535,)),
        (Draft, "<IIB", (1, 1, 255)),
        (Offer, "<IB", (1, 255)),
        (Open, "<QdddIIIB", (0, 1, 1, 1, 0, 1, 2**32 - 1, 255)),
    ],
)
def test_a_count_allocates_nothing_that_has_not_come(kind, layout, fields):
    _, server = connected()
    server.receive(encode_frame(opening(1), 1, VOCABULARY))
    body = struct.pack(layout, *fields)
    frame = HEADER.pack(HEADER.size + len(body), kind.TYPE, 0, 1, 2) + body
    assert peak_bytes(refuse(server, frame)) < 16 * 1024


def dribble(end, header, total):
    """A frame that never ends, in pieces of 512 bytes; stops when it is refused."""

    def action():
        try:
            end.receive(header)
            for _ in range(0, total, 512):
                end.receive(b"\0" * 512)
        except ProtocolError:
            pass

    return action


def test_buffered_bytes_stay_under_the_caps():
    early = Connection(Role.SERVER)
    hello = encode_frame(HELLO, 0, VOCABULARY)
    assert peak_bytes(dribble(early, struct.pack("<H", 512) + hello[2:8], 1 << 20)) < 16 * 1024
    early = Connection(Role.SERVER)
    assert peak_bytes(dribble(early, struct.pack("<H", 65_535) + hello[2:8], 1 << 20)) < 16 * 1024

    _, server = connected()
    server.receive(encode_frame(opening(1, prompt_tokens=65_535), 1, VOCABULARY))
    longest = HEADER.pack(MAX_LONG_FRAME_BYTES, Prompt.TYPE, 0, 1, 2)
    server.receive(longest + bytes(MAX_LONG_FRAME_BYTES - 9))
    assert server.buffered_bytes == MAX_LONG_FRAME_BYTES - 1
    # The frame's own copy and its token ids come on top of the buffer, then all of it goes.
    assert peak_bytes(refuse(server, b"\0" * 4096)) < 4 * MAX_LONG_FRAME_BYTES
    assert server.buffered_bytes == 0


def test_a_flood_of_spoilt_conversations_leaves_nothing_behind():
    rng = random.Random(5)
    converse_with_a_fault(rng)

    def action():
        for _ in range(150):
            converse_with_a_fault(rng)

    assert peak_bytes(action) < 1 << 20


def test_an_endless_stream_of_late_frames_is_dropped():
    edge, server = connected()
    server.receive(edge.send(opening(1, prompt_tokens=60_000)))
    server.send(Error(1, 5, False, "no room"))

    def action():
        for seq in range(2, 300):
            assert server.receive(encode_frame(Prompt(1, (7,) * 500), seq, VOCABULARY)) == []

    assert peak_bytes(action) < 128 * 1024
