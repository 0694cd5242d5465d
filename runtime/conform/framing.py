"""Cases 201 and on: headers, lengths, numbers of frames, pings, and what a fault does."""

from runtime.conform.peer import Failed, Visitor, opening
from runtime.wire import messages as wire
from runtime.wire.frames import MAX_FRAME_BYTES, MAX_LONG_FRAME_BYTES
from runtime.wire.messages import ErrorCode

LONG_PROMPT_TOKENS = 20_000

Bodies = dict[type[wire.Message], bytes]


async def unknown_type(visitor: Visitor) -> None:
    """§2.1 A frame of an unknown type is a fault."""
    for number in (0, 16, 255):
        peer = await visitor.admitted()
        peer.write(peer.raw(number))
        await peer.refused(ErrorCode.PROTOCOL)


async def flags(visitor: Visitor) -> None:
    """§2.1 Flags are zero."""
    for value in (1, 128):
        peer = await visitor.admitted()
        peer.write(peer.raw(wire.Ping, bytes(8), flags=value))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_length_below_the_headers(visitor: Visitor) -> None:
    """§2.1 A frame has 8 bytes or more."""
    for length in (0, 7):
        peer = await visitor.admitted()
        peer.write(peer.raw(wire.Close, request=1, length=length))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_lost_frame(visitor: Visitor) -> None:
    """§2.1 A seq that skips a number is a fault."""
    peer = await visitor.admitted()
    peer.seq += 1
    peer.send(wire.Ping(1))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_doubled_frame(visitor: Visitor) -> None:
    """§2.1 A seq that comes twice is a fault."""
    peer = await visitor.admitted()
    peer.seq -= 1
    peer.send(wire.Ping(1))
    await peer.refused(ErrorCode.PROTOCOL)


async def more_frames_than_seq_counts(visitor: Visitor) -> None:
    """§2.1 seq goes on with 0 after 65,535."""
    peer = await visitor.admitted()
    notice = wire.Error(0, ErrorCode.BUSY, False, "")
    peer.send(*[notice] * (65_536 - peer.seq))
    await peer.is_alive()


async def a_frame_in_single_bytes(visitor: Visitor) -> None:
    """§2.1 A frame that arrives byte by byte is the same frame."""
    peer = await visitor.admitted()
    await peer.drip(peer.frame(wire.Ping(7)))
    if (await peer.expect(wire.Pong)).nonce != 7:
        raise Failed("the Pong has another nonce")


async def frames_in_one_piece(visitor: Visitor) -> None:
    """§2.1 Frames that arrive together are handled in order."""
    peer = await visitor.admitted()
    prompt = peer.prompt(2)
    peer.send(wire.Ping(1), opening(1, 2), wire.Prompt(1, prompt), wire.Close(1), wire.Ping(2))
    nonces = [(await peer.expect(wire.Pong)).nonce for _ in range(2)]
    if nonces != [1, 2]:
        raise Failed(f"Pongs have the nonces {nonces}")


async def an_overlong_frame(visitor: Visitor) -> None:
    """§2.2 A frame has at most 16,384 bytes; the header alone is refused, with LIMIT."""
    peer = await visitor.admitted()
    peer.write(peer.raw(wire.Ping, length=MAX_FRAME_BYTES + 1))
    await peer.refused(ErrorCode.LIMIT)


async def an_overlong_prompt_frame(visitor: Visitor) -> None:
    """§2.2 A frame of a Prompt has at most 61,440 bytes."""
    peer = await visitor.admitted()
    peer.send(opening())
    peer.write(peer.raw(wire.Prompt, request=1, length=MAX_LONG_FRAME_BYTES + 1))
    await peer.refused(ErrorCode.LIMIT)


async def a_long_prompt_frame(visitor: Visitor) -> None:
    """§2.2 A Prompt of more than 16,384 bytes is read, if only to be dropped after an Error."""
    peer = await visitor.admitted()
    prompt = peer.prompt(LONG_PROMPT_TOKENS)
    peer.send(opening(1, len(prompt), max_tokens=1), wire.Prompt(1, prompt), wire.Close(1))
    await peer.receive(1)  # a Verdict, an Error or a Close: its size is no fault
    peer.send(wire.Ping(1))
    await peer.expect(wire.Pong)


async def a_body_too_short(visitor: Visitor) -> None:
    """§2.1 A body shorter than its fields is a fault."""
    bodies: Bodies = {wire.Ping: bytes(7), wire.Open: bytes(20), wire.Error: b"\5"}
    for kind, body in bodies.items():
        peer = await visitor.admitted()
        peer.write(peer.raw(kind, body, request=_request(kind)))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_body_too_long(visitor: Visitor) -> None:
    """§2.1 A body longer than its fields is a fault."""
    bodies: Bodies = {wire.Ping: bytes(9), wire.Pong: bytes(9), wire.Close: b"\0"}
    for kind, body in bodies.items():
        peer = await visitor.admitted()
        peer.send(opening())
        peer.write(peer.raw(kind, body, request=_request(kind)))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_ping_with_a_request(visitor: Visitor) -> None:
    """§2.1 Messages of the connection have request 0."""
    peer = await visitor.admitted()
    peer.write(peer.raw(wire.Ping, bytes(8), request=3))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_request_with_number_0(visitor: Visitor) -> None:
    """§2.1 Messages of a request have its number, 1 to 65,535."""
    for message in (opening(), wire.Close(1), wire.Prompt(1, (1,))):
        peer = await visitor.admitted()
        peer.write(peer.raw(type(message), message.encode(peer.vocabulary_size), request=0))
        await peer.refused(ErrorCode.PROTOCOL)


async def half_a_frame(visitor: Visitor) -> None:
    """§4.6 A connection may end in the middle of a frame; the server lives."""
    for sent in (1, 7, 8, 15):
        peer = await visitor.admitted()
        peer.write(peer.frame(wire.Ping(1))[:sent])
        peer.hang_up()
    await visitor.admitted()


async def a_fault_comes_after_what_came_before(visitor: Visitor) -> None:
    """§7 Frames before a fault are handled, in the same piece too."""
    peer = await visitor.admitted()
    peer.write(peer.frame(wire.Ping(5)) + peer.raw(99))
    if (await peer.expect(wire.Pong)).nonce != 5:
        raise Failed("the Pong has another nonce")
    await peer.refused(ErrorCode.PROTOCOL)


async def nothing_is_looked_at_after_a_fault(visitor: Visitor) -> None:
    """§7 Frames after a fault are not handled."""
    peer = await visitor.admitted()
    peer.write(peer.raw(99) + peer.frame(wire.Ping(5)))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_fault_ends_one_connection(visitor: Visitor) -> None:
    """§4.6 A fault ends its own connection and no other."""
    good, bad = await visitor.admitted(), await visitor.admitted()
    request = good.open()
    bad.open()
    bad.write(bad.raw(99))
    await request.rest()
    await good.is_alive()


async def ping(visitor: Visitor) -> None:
    """§4.5 A Ping is answered by a Pong of the same nonce."""
    peer = await visitor.admitted()
    for nonce in (0, 1, 2**63, 2**64 - 1):
        peer.send(wire.Ping(nonce))
        if (await peer.expect(wire.Pong)).nonce != nonce:
            raise Failed(f"the Pong of {nonce} has another nonce")


async def ping_in_a_request(visitor: Visitor) -> None:
    """§4.5 A Ping is answered in every state of a request."""
    peer = await visitor.admitted()
    peer.send(opening(1, 2), wire.Ping(1))
    await peer.expect(wire.Pong)
    peer.send(wire.Prompt(1, peer.prompt(2)), wire.Ping(2))
    await peer.expect(wire.Pong)
    peer.send(wire.Close(1), wire.Ping(3))
    await peer.expect(wire.Pong)


async def a_pong_that_nobody_asked_for(visitor: Visitor) -> None:
    """§4.5 A Pong that answers no Ping is a fault."""
    peer = await visitor.admitted()
    peer.send(wire.Pong(0x5EED))
    await peer.refused(ErrorCode.PROTOCOL)


async def a_notice(visitor: Visitor) -> None:
    """§4.6 An Error of request 0 that is not fatal changes nothing."""
    peer = await visitor.admitted()
    peer.send(wire.Error(0, ErrorCode.DRAINING, False, "à bientôt"))
    await peer.is_alive()


async def a_fatal_error(visitor: Visitor) -> None:
    """§4.6 A fatal Error ends the connection, and is not answered."""
    peer = await visitor.admitted()
    peer.send(wire.Error(0, ErrorCode.INTERNAL, True, "the draft model failed"))
    await peer.ended()


async def an_error_that_is_no_error(visitor: Visitor) -> None:
    """§3.8 code is 1 to 11, fatal 0 or 1, the sentence UTF-8 of at most 400 bytes."""
    for body in (b"\0\0", b"\x0c\0", b"\1\2", b"\1\0\xff", b"\1\0" + b"x" * 401):
        peer = await visitor.admitted()
        peer.write(peer.raw(wire.Error, body))
        await peer.refused(ErrorCode.PROTOCOL)


async def an_edges_error_for_a_request(visitor: Visitor) -> None:
    """§7 Only the server sends an Error for a request, and never a fatal one."""
    for fatal in (False, True):
        peer = await visitor.admitted()
        peer.send(opening(), wire.Error(1, ErrorCode.INTERNAL, fatal, "I failed"))
        await peer.refused(ErrorCode.PROTOCOL)


async def what_only_servers_send(visitor: Visitor) -> None:
    """§4.1 An edge does not send Welcome, Template, Challenge, Redirect, Verdict or Credit."""
    verdict = wire.Verdict(1, 0, 0, 1, wire.Finish.NONE, 0, 0)
    others = (wire.Challenge(bytes(32), bytes(32)), wire.Redirect(1, "x"), wire.Credit(1, 1, 0, 0))
    greetings = (wire.Welcome(1, 260, bytes(16), 1, 100, 1, "x"), wire.Template("x"))
    for message in (*greetings, verdict, *others):
        peer = await visitor.admitted()
        peer.send(opening(), message)
        await peer.refused(ErrorCode.PROTOCOL)


def _request(kind: type[wire.Message]) -> int:
    return 0 if kind in (wire.Ping, wire.Pong, wire.Error) else 1
