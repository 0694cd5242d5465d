"""Cases 101 and on: who is let in, and what is refused before the Welcome."""

from collections.abc import Callable
from dataclasses import replace

from runtime.conform.peer import Failed, Peer, Skipped, Visitor, opening
from runtime.wire import messages as wire
from runtime.wire.connection import MAX_HANDSHAKE_FRAME_BYTES
from runtime.wire.frames import HEADER
from runtime.wire.messages import ErrorCode
from runtime.wire.tcp import HANDSHAKE_TIMEOUT_S

VERSION_AT, VOCABULARY_AT = 4, 6  # in the body of a Hello
USER_BYTES_AT = wire.Hello.LAYOUT.size - 1


async def hello_is_answered(visitor: Visitor) -> None:
    """§4.2 A Hello is answered by the Welcome, or where there are users by a Challenge."""
    peer = await visitor.connect()
    await peer.greet()


async def the_welcome_says_the_limits(visitor: Visitor) -> None:
    """§3.2 The Welcome has the Hello's version, and a context longer than a prompt of one token."""
    welcome = await (await visitor.connect()).greet()
    if welcome.version != visitor.target.hello.version or welcome.max_context < 2:
        raise Failed(f"the Welcome is {welcome}")


async def hello_in_single_bytes(visitor: Visitor) -> None:
    """§2.1 A Hello that arrives byte by byte is the same Hello."""
    peer = await visitor.connect()
    await peer.drip(peer.frame(peer.hello))
    await peer.expect(wire.Challenge if visitor.target.token else wire.Welcome)


async def wrong_magic(visitor: Visitor) -> None:
    """§4.2 A Hello with another magic is refused with PROTOCOL."""
    await _refused_hello(visitor, ErrorCode.PROTOCOL, 0, b"STF2")


async def wrong_version(visitor: Visitor) -> None:
    """§4.2 Another version of the protocol is refused with VERSION."""
    for version in (0, 3, 65535):
        field = version.to_bytes(2, "little")
        await _refused_hello(visitor, ErrorCode.VERSION, VERSION_AT, field)


async def a_later_version_with_another_layout(visitor: Visitor) -> None:
    """§4.2 The version is looked at before the rest of the body, which may mean anything."""
    peer = await visitor.connect()
    peer.write(peer.raw(wire.Hello, wire.MAGIC + b"\x03\x00\xff"))
    await peer.refused(ErrorCode.VERSION)


async def another_vocabulary(visitor: Visitor) -> None:
    """§4.7 A Hello of no more rows, with another hash for them, is refused with VOCABULARY."""
    rows = (await (await visitor.connect()).greet()).vocabulary_size
    for size in (2, rows):
        digest = bytes(byte ^ 0xFF for byte in visitor.target.vocabulary_hash(size))
        peer = await visitor.connect()
        await peer.introduce(vocabulary_size=size, vocabulary_hash=digest)
        await peer.refused(ErrorCode.VOCABULARY)


async def an_edge_with_fewer_rows(visitor: Visitor) -> None:
    """§4.7 An edge with fewer rows is welcome, if the ids below them stand for the same."""
    for size in (2, visitor.target.hello.vocabulary_size // 2):
        peer = await visitor.connect()
        digest = visitor.target.vocabulary_hash(size)
        await peer.introduce(vocabulary_size=size, vocabulary_hash=digest)
        await peer.expect(wire.Welcome)


async def an_edge_with_more_rows(visitor: Visitor) -> None:
    """§4.7 An edge with more rows compares: the Welcome's hash is that of its own ids below."""
    peer = await visitor.connect()
    await peer.introduce(vocabulary_size=wire.MAX_VOCABULARY, vocabulary_hash=bytes(16))
    welcome = await peer.expect(wire.Welcome)
    if welcome.vocabulary_hash != visitor.target.vocabulary_hash(welcome.vocabulary_size):
        raise Failed("the Welcome's hash is of another vocabulary")


async def an_edge_without_a_template(visitor: Visitor) -> None:
    """§4.8 The target's template follows the Welcome where the edge has another or none."""
    for digest in (wire.NO_TEMPLATE, b"another template"):
        peer = await visitor.connect()
        await peer.introduce(template_hash=digest)
        peer.welcome = await peer.expect(wire.Welcome)
        if peer.welcome.template_hash == wire.NO_TEMPLATE:
            raise Skipped("the target has no chat template")
        await peer.template()
        await peer.is_alive()


async def an_edge_with_the_template(visitor: Visitor) -> None:
    """§4.8 No Template comes where the edge has the same."""
    same = (await (await visitor.connect()).greet()).template_hash
    peer = await visitor.connect()
    await peer.introduce(template_hash=same)
    await peer.expect(wire.Welcome)
    await peer.is_alive()


async def short_hello(visitor: Visitor) -> None:
    """§2.1 A Hello whose body is shorter than its fields is a fault."""
    peer = await visitor.connect()
    peer.write(peer.raw(wire.Hello, peer.hello.encode(0)[:USER_BYTES_AT]))
    await peer.refused(ErrorCode.PROTOCOL)


async def hello_of_no_vocabulary(visitor: Visitor) -> None:
    """§3.1 vocabulary_size is 2 to 16,777,216."""
    for size in (0, 1, 2**24 + 1):
        field = size.to_bytes(4, "little")
        await _refused_hello(visitor, ErrorCode.PROTOCOL, VOCABULARY_AT, field)


async def user_beyond_the_body(visitor: Visitor) -> None:
    """§3.1 The user's size may not exceed what the body holds."""
    await _refused_hello(visitor, ErrorCode.PROTOCOL, USER_BYTES_AT, b"\xff")


async def user_of_65_bytes(visitor: Visitor) -> None:
    """§3.1 A user has at most 64 bytes."""
    await _refused_names(visitor, b"\x41", b"u" * 65)


async def model_of_256_bytes(visitor: Visitor) -> None:
    """§3.1 The model's name has at most 255 bytes."""
    await _refused_names(visitor, b"\0", b"m" * 256)


async def names_that_are_no_text(visitor: Visitor) -> None:
    """§1 Text is UTF-8 without control characters."""
    for name in (b"\xff\xfe", b"draft\n", b"\x00", "\x85".encode()):
        await _refused_names(visitor, b"\0", name)


async def a_frame_too_long_for_strangers(visitor: Visitor) -> None:
    """§4.2 Before the Welcome no frame is longer than 512 bytes; the header alone is refused."""
    peer = await visitor.connect()
    peer.write(peer.raw(wire.Hello, length=MAX_HANDSHAKE_FRAME_BYTES + 1))
    await peer.refused(ErrorCode.LIMIT)


async def ping_before_the_hello(visitor: Visitor) -> None:
    """§4.1 The first frame is a Hello: a Ping is a fault."""
    await _refused_first(visitor, wire.Ping(1))


async def open_before_the_hello(visitor: Visitor) -> None:
    """§4.1 The first frame is a Hello: an Open is a fault."""
    await _refused_first(visitor, opening())


async def proof_before_the_hello(visitor: Visitor) -> None:
    """§4.1 The first frame is a Hello: a Proof is a fault."""
    await _refused_first(visitor, wire.Proof(bytes(32)))


async def welcome_from_an_edge(visitor: Visitor) -> None:
    """§4.1 An edge does not send what servers send: a Welcome is a fault."""
    await _refused_first(visitor, wire.Welcome(1, 260, bytes(16), 1, 100, 1, "I am the server"))


async def another_protocol(visitor: Visitor) -> None:
    """§2.1 A peer that speaks something else is refused, and the server lives."""
    for greeting in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(64), b"\xff" * 64):
        peer = await visitor.connect()
        peer.write(greeting)
        message = await peer.receive()
        if not isinstance(message, wire.Error) or not message.fatal:
            raise Failed(f"a {type(message).__name__} answers it")
        await peer.ended()
    await visitor.admitted()


async def second_hello(visitor: Visitor) -> None:
    """§4.1 A Hello after the Welcome is a fault."""
    peer = await visitor.admitted()
    peer.send(peer.hello)
    await peer.refused(ErrorCode.PROTOCOL)


async def a_hello_must_have_seq_0(visitor: Visitor) -> None:
    """§2.1 seq counts from 0."""
    peer = await visitor.connect()
    peer.seq = 1
    peer.send(peer.hello)
    await peer.refused(ErrorCode.PROTOCOL)


async def strangers_that_take_too_long(visitor: Visitor) -> None:
    """§4.2 Who is not welcomed in time is refused with TIMEOUT, whatever was sent meanwhile."""
    silent, slow = await visitor.connect(), await visitor.connect()
    slow.write(slow.frame(slow.hello)[:-1])
    for peer in (silent, slow):
        peer.wait_s = max(peer.wait_s, 2 * HANDSHAKE_TIMEOUT_S)
        await peer.refused(ErrorCode.TIMEOUT)


async def a_stranger_that_hangs_up(visitor: Visitor) -> None:
    """§4.6 A connection may end anywhere in the handshake; others are welcomed after it."""
    whole = (await visitor.connect()).frame(visitor.target.hello)
    for sent in (b"", whole[:1], whole[: HEADER.size], whole[:-1], whole):
        peer = await visitor.connect()
        peer.write(sent)
        peer.hang_up()
    await visitor.admitted()


async def an_edge_that_gives_up(visitor: Visitor) -> None:
    """§4.6 A fatal Error of the edge ends the connection, and is not answered."""
    peer = await visitor.connect()
    peer.send(wire.Error(0, ErrorCode.INTERNAL, True, "changed my mind"))
    await peer.ended()


async def a_notice_from_a_stranger(visitor: Visitor) -> None:
    """§7 Before the connection is open every Error must be fatal."""
    await _refused_first(visitor, wire.Error(0, ErrorCode.BUSY, False, "one moment"))


async def every_challenge_is_new(visitor: Visitor) -> None:
    """§3.12 The Challenge's nonce is new for every connection, whoever asks."""
    visitor.needs_user()
    peers = [await visitor.connect() for _ in range(3)]
    for peer in peers:
        peer.hello = visitor.target.hello  # the same bytes each time
        peer.send(peer.hello)
    challenges = [await peer.challenged() for peer in peers]
    if len({c.nonce for c in challenges}) < 3 or len({c.proof for c in challenges}) < 3:
        raise Failed("two connections get the same Challenge")


async def the_server_proves_itself(visitor: Visitor) -> None:
    """§4.3 The Challenge proves that the server has the user's token."""
    visitor.needs_user()
    peer = await visitor.connect()
    peer.send(peer.hello)
    if not peer.is_proven(await peer.challenged()):
        raise Failed("the proof in the Challenge is not right")


async def a_guessed_proof(visitor: Visitor) -> None:
    """§4.3 A wrong proof is refused with AUTHENTICATION, and a right one is welcome after it."""
    await _refused_proof(visitor, lambda peer, challenge: bytes(32))


async def a_reflected_proof(visitor: Visitor) -> None:
    """§4.3 The server's own proof is none of the edge's."""
    await _refused_proof(visitor, lambda peer, challenge: challenge.proof)


async def a_replayed_proof(visitor: Visitor) -> None:
    """§4.3 A proof of another connection is none of this one."""
    visitor.needs_user()
    other = await visitor.connect()
    other.hello = visitor.target.hello
    other.send(other.hello)
    old = other.proof(await other.challenged())
    await _refused_proof(visitor, lambda peer, challenge: old, visitor.target.hello)


async def an_unknown_user(visitor: Visitor) -> None:
    """§4.3 A user the server does not know is challenged and refused like any other."""
    hello = replace(visitor.target.hello, user="nobody-of-this-name")
    await _refused_proof(visitor, lambda peer, challenge: peer.proof(challenge), hello)


async def a_short_proof(visitor: Visitor) -> None:
    """§3.13 A Proof has 32 bytes."""
    visitor.needs_user()
    for size in (0, 31, 33):
        peer = await visitor.connect()
        peer.send(peer.hello)
        await peer.challenged()
        peer.write(peer.raw(wire.Proof, bytes(size)))
        await peer.refused(ErrorCode.PROTOCOL)


async def a_request_before_the_proof(visitor: Visitor) -> None:
    """§4.1 Where a Proof is due nothing else is allowed."""
    visitor.needs_user()
    for message in (wire.Ping(1), opening()):
        peer = await visitor.connect()
        peer.send(peer.hello)
        await peer.challenged()
        peer.send(message)
        await peer.refused(ErrorCode.PROTOCOL)


async def _refused_hello(visitor: Visitor, code: ErrorCode, at: int, field: bytes) -> None:
    """A Hello with these bytes of its body changed."""
    peer = await visitor.connect()
    body = peer.hello.encode(0)
    peer.write(peer.raw(wire.Hello, body[:at] + field + body[at + len(field) :]))
    await peer.refused(code)


async def _refused_names(visitor: Visitor, user_bytes: bytes, names: bytes) -> None:
    peer = await visitor.connect()
    body = peer.hello.encode(0)[:USER_BYTES_AT] + user_bytes + names
    peer.write(peer.raw(wire.Hello, body))
    await peer.refused(ErrorCode.PROTOCOL)


async def _refused_first(visitor: Visitor, message: wire.Message) -> None:
    peer = await visitor.connect()
    peer.send(message)
    await peer.refused(ErrorCode.PROTOCOL)


async def _refused_proof(
    visitor: Visitor,
    make_proof: Callable[[Peer, wire.Challenge], bytes],
    hello: wire.Hello | None = None,
) -> None:
    """A proof that must not be taken. A right one follows, for which a server forgives it."""
    visitor.needs_user()
    peer = await visitor.connect()
    peer.hello = hello or peer.hello
    peer.send(peer.hello)
    peer.send(wire.Proof(make_proof(peer, await peer.challenged())))
    await peer.refused(ErrorCode.AUTHENTICATION)
    await visitor.admitted()
