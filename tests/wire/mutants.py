"""A server that misbehaves in one way: a relay in front of a right one that changes its frames."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from runtime.wire import messages as wire
from runtime.wire.frames import HEADER, encode_frame

LENGTH, TYPE, FLAGS, SEQ, BODY = 0, 2, 3, 6, HEADER.size
ROUND, NODE, BONUS, FINISH, MAX_NODES = BODY, BODY + 4, BODY + 5, BODY + 9, BODY + 15
TURN = BODY + 14
VOCABULARY_HASH = BODY + 6
CODE, FATAL = BODY, BODY + 1

Change = Callable[[bytearray], bytes]


@dataclass(frozen=True)
class Mutant:
    """What it does wrong, and which cases must find out; `holds` must not be disturbed.

    `down` changes each of the server's frames, `up` each piece that an edge sends.
    """

    name: str
    fails: tuple[str, ...]
    holds: tuple[str, ...]
    down: Change = bytes
    up: Change = bytes


def when(kind: type[wire.Message], change: Callable[[bytearray], None]) -> Change:
    """A change of the frames of one kind."""

    def apply(frame: bytearray) -> bytes:
        if len(frame) >= BODY and frame[TYPE] == kind.TYPE:
            change(frame)
        return bytes(frame)

    return apply


def byte(at: int, value: int, only: Callable[[bytearray], bool] = lambda frame: True):
    """Set one byte of a frame, if the rest is as told."""

    def change(frame: bytearray) -> None:
        if only(frame):
            frame[at] = value

    return change


def one_more(at: int, layout: str, only: Callable[[bytearray], bool] = lambda frame: True):
    """Add one to a number."""

    def change(frame: bytearray) -> None:
        if only(frame):
            (number,) = struct.unpack_from(layout, frame, at)
            struct.pack_into(layout, frame, at, number + 1)

    return change


def has_draft(verdict: bytearray) -> bool:
    return struct.unpack_from("<I", verdict, ROUND) > (0,)


def is_last(verdict: bytearray) -> bool:
    return verdict[FINISH] != wire.Finish.NONE


def has_turn(verdict: bytearray) -> bool:
    return verdict[TURN] == wire.Turn.EDGE


def no_close(frame: bytearray) -> bytes:
    return b"" if frame[TYPE] == wire.Close.TYPE else bytes(frame)


def close_after_the_end(frame: bytearray) -> bytes:
    if frame[TYPE] != wire.Verdict.TYPE or not is_last(frame):
        return bytes(frame)
    request = frame[4:SEQ]
    return bytes(frame) + struct.pack("<HBB", BODY, wire.Close.TYPE, 0) + request + b"\0\0"


def credit_after_the_turn(frame: bytearray) -> bytes:
    if frame[TYPE] != wire.Verdict.TYPE or not has_turn(frame):
        return bytes(frame)
    credit = wire.Credit(int.from_bytes(frame[4:SEQ], "little"), 1, 0, 0)
    return bytes(frame) + encode_frame(credit, 0, 0)


def template_for_everybody(frame: bytearray) -> bytes:
    if frame[TYPE] != wire.Welcome.TYPE:
        return bytes(frame)
    return bytes(frame) + encode_frame(wire.Template(""), 0, 0)


def no_logprobs(frame: bytearray) -> bytes:
    return b"" if frame[TYPE] == wire.Logprobs.TYPE else bytes(frame)


def reading_after_verdicts(frame: bytearray) -> bytes:
    if frame[TYPE] != wire.Verdict.TYPE or is_last(frame):
        return bytes(frame)
    return bytes(frame) + encode_frame(wire.Reading(frame[4] + 256 * frame[5], 0, 1), 0, 0)


def without_rules(piece: bytearray) -> bytes:
    """A Rule's penalties and biases as good as none: a bias of next to nothing alone is left."""
    kept, at = bytearray(piece), 0
    while at + BODY <= len(kept):
        length = struct.unpack_from("<H", kept, at)[0]
        if kept[at + TYPE] == wire.Rule.TYPE and length > BODY + 26:
            struct.pack_into("<ddd", kept, at + BODY, 0.0, 0.0, 1.0)
            count = struct.unpack_from("<H", kept, at + BODY + 24)[0]
            first = at + length - 8 * count
            struct.pack_into(f"<{count}d", kept, first, *[1e-30] * count)
        at += max(length, BODY)
    return bytes(kept)


def with_another_end(piece: bytearray) -> bytes:
    """An answer that is given has another last id."""
    kept, at = bytearray(piece), 0
    while at + BODY <= len(kept):
        length = struct.unpack_from("<H", kept, at)[0]
        is_given = kept[at + BODY : at + BODY + 1] == bytes([wire.ConstraintKind.TOKENS])
        if kept[at + TYPE] == wire.Constraint.TYPE and is_given:
            kept[at + length - 1] ^= 1  # its last digit
        at += max(length, BODY)
    return bytes(kept)


def mend_magic(piece: bytearray) -> bytes:
    return bytes(piece).replace(b"STF2", b"STF1")


def mend_flags(piece: bytearray) -> bytes:
    if len(piece) == 16 and piece[TYPE] == wire.Ping.TYPE:
        piece[FLAGS] = 0
    return bytes(piece)


def shorten(piece: bytearray) -> bytes:
    if len(piece) == BODY and piece[TYPE] == wire.Ping.TYPE:
        struct.pack_into("<H", piece, LENGTH, 16)
    return bytes(piece)


ADDING_OR_DROPPING = (
    no_close,
    close_after_the_end,
    credit_after_the_turn,
    template_for_everybody,
    no_logprobs,
    reading_after_verdicts,
)
MUTANTS = (
    Mutant("another nonce in Pongs", ("ping", "a_notice"), ("hello_is_answered", "wrong_magic"),
           down=when(wire.Pong, one_more(BODY, "<B", lambda frame: frame[BODY] < 255))),
    Mutant("rounds from one", ("a_prompt_is_answered", "rounds_count_by_one"), ("ping",),
           down=when(wire.Verdict, one_more(ROUND, "<I"))),
    Mutant("nodes that nobody drafted", ("a_draft_without_nodes", "wrong_drafts"),
           ("a_prompt_is_answered",), down=when(wire.Verdict, byte(NODE, 200, has_draft))),
    Mutant("another token after a draft", ("right_drafts", "any_drafts"),
           ("greedy_twice", "wrong_drafts"),
           down=when(wire.Verdict, one_more(BONUS, "<I", lambda frame: frame[NODE] > 0))),
    Mutant("nothing is accepted", ("right_drafts", "half_right_drafts"), ("drafts_of_nothing",),
           down=when(wire.Verdict, byte(NODE, 0))),
    Mutant("faults that are not fatal", ("wrong_magic", "flags", "a_number_in_use"), ("ping",),
           down=when(wire.Error, byte(FATAL, 0))),
    Mutant("errors that are all PROTOCOL",
           ("an_overlong_frame", "too_many_requests", "one_node_too_many", "wrong_version",
            "an_id_outside_the_vocabulary", "a_drafted_id_outside_the_vocabulary",
            "a_stop_id_outside_the_vocabulary"),
           ("flags", "a_prompt_after_the_prompt"), down=when(wire.Error, byte(CODE, 1))),
    Mutant("a Close is not answered", ("cancel_before_the_prompt", "cancel_in_the_edges_turn"),
           ("nothing_after_the_end", "a_number_again"), down=no_close),
    Mutant("every Close is answered", ("nothing_after_the_end", "cancel_at_the_end"),
           ("cancel_before_the_prompt",), down=close_after_the_end),
    Mutant("turns that allow too much", ("no_turn_allows_more_than_the_open",), ("any_drafts",),
           down=when(wire.Verdict, byte(MAX_NODES, 32, lambda frame: frame[MAX_NODES] > 0))),
    Mutant("every end is a stop", ("exactly_max_tokens", "the_end_in_a_draft"), ("a_stop_id",),
           down=when(wire.Verdict, byte(FINISH, 1, is_last))),
    Mutant("every end is the length", ("a_stop_id", "a_stop_id_in_a_draft"),
           ("exactly_max_tokens",), down=when(wire.Verdict, byte(FINISH, 2, is_last))),
    Mutant("no log-probabilities", ("log_probabilities",), ("drafts_under_a_rule", "ping"),
           down=no_logprobs),
    Mutant("prompts that are read again and again", ("how_far_a_prompt_is_read",),
           ("a_prompt_is_answered", "right_drafts"), down=reading_after_verdicts),
    Mutant("rules without an effect", ("a_bias_that_forces_a_token",),
           ("drafts_under_a_rule", "greedy_twice"), up=without_rules),
    Mutant("another answer than the given one", ("an_answer_that_is_given",),
           ("given_tokens_that_are_none", "drafts_under_a_rule"), up=with_another_end),
    Mutant("any magic", ("wrong_magic",), ("wrong_version", "hello_is_answered"), up=mend_magic),
    Mutant("any flags", ("flags",), ("unknown_type",), up=mend_flags),
    Mutant("frames of any length", ("an_overlong_frame",), ("a_length_below_the_headers", "ping"),
           up=shorten),
    Mutant("drafts are taken without a Credit, which never comes",
           ("a_draft_without_its_credit", "one_credit_for_each_wait"), ("a_draft_of_nothing",),
           down=when(wire.Verdict, byte(TURN, wire.Turn.WAIT, has_turn))),
    Mutant("Credits for who does not wait", ("one_credit_for_each_wait", "drafts_of_nothing"),
           ("cancel_at_the_end",), down=credit_after_the_turn),
    Mutant("everything is kept for who does not read", ("an_edge_that_does_not_read",), ("ping",)),
    Mutant("a Welcome of another vocabulary", ("an_edge_with_more_rows",),
           ("an_edge_with_fewer_rows", "another_vocabulary", "ping"),
           down=when(wire.Welcome, byte(VOCABULARY_HASH, 0))),
    Mutant("another Template than the Welcome's",
           ("an_edge_without_a_template", "an_edge_with_the_template", "ping"),
           ("an_edge_with_fewer_rows",), down=when(wire.Template, byte(BODY, ord("x")))),
    Mutant("a Template for everybody", ("an_edge_with_the_template", "ping"),
           ("an_edge_with_fewer_rows", "hello_in_single_bytes"), down=template_for_everybody),
    Mutant("no numbers in frames", ("ping", "a_notice"), (),
           down=lambda frame: bytes(frame[:SEQ]) + b"\1\1" + bytes(frame[BODY:])),
)  # fmt: skip


@asynccontextmanager
async def relay(mutant: Mutant, host: str, port: int) -> AsyncIterator[int]:
    """The port of a misbehaving server in front of the one at host:port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        server_reader, server_writer = await asyncio.open_connection(host, port)
        up = _pump(reader, server_writer, _piece, mutant.up)
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.gather(up, _pump(server_reader, writer, _frame, mutant.down))
        finally:
            server_writer.close()
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    read: Callable[[asyncio.StreamReader], AsyncIterator[bytes]],
    change: Change,
) -> None:
    numbered = read is _frame and change in ADDING_OR_DROPPING
    seq = 0
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        async for data in read(reader):
            changed = change(bytearray(data))
            if numbered:
                changed, seq = _numbered(changed, seq)
            writer.write(changed)
    with suppress(OSError, RuntimeError):
        writer.write_eof()


def _numbered(frames: bytes, seq: int) -> tuple[bytes, int]:
    """Frames with numbers that go on from seq: none is missing where one was added or dropped."""
    numbered, start = bytearray(frames), 0
    while start < len(numbered):
        struct.pack_into("<H", numbered, start + SEQ, seq)
        start, seq = start + struct.unpack_from("<H", numbered, start)[0], (seq + 1) & 0xFFFF
    return bytes(numbered), seq


async def _piece(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(65_536):
        yield data


async def _frame(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        head = await reader.readexactly(BODY)
        yield head + await reader.readexactly(struct.unpack_from("<H", head)[0] - BODY)
