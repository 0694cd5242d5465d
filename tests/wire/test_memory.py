"""Two ends in one event loop: what a pair of sockets does, without sockets."""

import asyncio
from dataclasses import replace

import pytest

from runtime.wire.auth import NO_CERTIFICATE
from runtime.wire.connection import ConnectionState, Role
from runtime.wire.memory import MOST_WAITING_BYTES, PLACE, TURN_BYTES, join
from runtime.wire.messages import (
    MAX_SENTENCE_BYTES,
    Error,
    ErrorCode,
    Open,
    Ping,
    Prompt,
    Template,
    template_hash,
)
from runtime.wire.tcp import MAX_WRITE_BUFFER_BYTES, FramedProtocol
from tests.wire.cases import HELLO, WELCOME, opening


class Rig:
    """A server's protocol and an edge's, and what each has heard; the server welcomes."""

    def __init__(self, welcome=WELCOME, certificate=NO_CERTIFICATE, refusal=None):
        self.welcome = welcome
        self.heard, self.told, self.reasons = [], [], {}
        self.news = asyncio.Event()
        self.server = FramedProtocol(
            Role.SERVER, self.on_server_message, self.on_closed, on_connected=lambda peer: refusal
        )
        self.edge = join(self.server, self.on_edge_message, self.on_closed, certificate)

    def on_server_message(self, peer, message):
        self.heard.append(message)
        if message == HELLO:
            peer.send(self.welcome)
        self.news.set()

    def on_edge_message(self, peer, message):
        self.told.append(message)
        self.news.set()

    def on_closed(self, peer, reason):
        self.reasons[peer.connection.role] = reason
        self.news.set()

    async def until(self, done):
        while not done():
            self.news.clear()
            await self.news.wait()

    async def greet(self):
        self.edge.send(HELLO)
        await self.until(lambda: self.edge.connection.state is ConnectionState.OPEN)
        return self


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_messages_arrive_in_order_and_never_within_a_call():
    async def scenario():
        rig = await Rig().greet()
        rig.edge.send(opening(1, prompt_tokens=100))
        for token in range(100):
            rig.edge.send(Prompt(1, (token,)))
        assert rig.heard == [HELLO]
        await rig.until(lambda: len(rig.heard) == 102)
        assert isinstance(rig.heard[1], Open)
        assert [message.tokens for message in rig.heard[2:]] == [(token,) for token in range(100)]
        assert rig.server.peer_name == rig.server.host == PLACE
        assert rig.edge.bytes_sent == rig.server.bytes_received == rig.edge.taken_bytes

    run(scenario)


def test_the_tables_of_the_protocol_hold():
    async def scenario():
        rig = await Rig().greet()
        with pytest.raises(ValueError, match="the edge cannot send Prompt"):
            rig.edge.send(Prompt(7, (1,)))
        rig.edge._transport.write(b"no frame at all" * 3)
        await rig.until(lambda: len(rig.reasons) == 2)
        assert "broke the protocol" in rig.reasons[Role.SERVER]
        assert rig.edge.ended_with is ErrorCode.PROTOCOL

    run(scenario)


def test_what_is_long_comes_bit_by_bit_and_leaves_the_loop_to_others():
    async def scenario():
        source = "x" * 20 * TURN_BYTES[Role.SERVER]
        rig = Rig(replace(WELCOME, template_hash=template_hash(source)))
        rig.edge.send(HELLO)
        await rig.until(lambda: rig.told)
        rig.server.send(Template(source))
        turns = 0
        while len(rig.told) < 2:
            turns += 1
            waiting_bytes = rig.server._transport.get_write_buffer_size()
            await asyncio.sleep(0)
            gone_bytes = waiting_bytes - rig.server._transport.get_write_buffer_size()
            assert gone_bytes <= TURN_BYTES[Role.SERVER]
        assert turns >= 20
        assert rig.told[1] == Template(source)

    run(scenario)


def test_an_end_that_is_late_is_not_cut_for_it():
    """Over a socket it would be: MAX_WRITE_BUFFER_BYTES."""

    async def scenario():
        rig = await Rig().greet()
        notice = Error(0, ErrorCode.BUSY, False, "x" * MAX_SENTENCE_BYTES)
        count = 1 + MAX_WRITE_BUFFER_BYTES[Role.SERVER] // MAX_SENTENCE_BYTES
        for _ in range(count):  # without a turn of the loop in between
            rig.server.send(notice)
        await rig.until(lambda: len(rig.told) == 1 + count)
        assert not rig.reasons
        for _ in range(MOST_WAITING_BYTES // MAX_SENTENCE_BYTES):  # but there is an end to it
            rig.server.send(notice)
        await rig.until(lambda: len(rig.reasons) == 2)
        assert "reads too slowly" in rig.reasons[Role.SERVER]

    run(scenario)


def test_what_was_sent_before_a_close_arrives():
    async def scenario():
        rig = await Rig().greet()
        rig.server.send(Ping(5))
        rig.server.refuse(ErrorCode.DRAINING, "we stop")
        await rig.until(lambda: len(rig.reasons) == 2)
        assert rig.told[-1] == Error(0, ErrorCode.DRAINING, True, "we stop")
        assert rig.reasons[Role.SERVER] == "we stop"
        assert rig.reasons[Role.EDGE] == "the peer ended the connection: we stop"
        assert rig.edge.is_closing
        assert rig.server.is_closing

    run(scenario)


def test_what_was_not_taken_before_an_abort_does_not():
    async def scenario():
        rig = await Rig().greet()
        told = len(rig.told)
        rig.server.send(Error(0, ErrorCode.BUSY, False, "wait"))
        rig.server.abort()
        await rig.until(lambda: len(rig.reasons) == 2)
        assert len(rig.told) == told
        assert rig.reasons == {
            Role.SERVER: None,
            Role.EDGE: "the peer closed the connection",
        }

    run(scenario)


def test_one_end_hangs_up_and_both_are_told_once():
    async def scenario():
        rig = await Rig().greet()
        rig.edge.close()
        rig.server.send(Ping(1))  # crosses it, unheard
        await asyncio.gather(rig.edge.hang_up(1), rig.server.hang_up(1))
        assert rig.reasons == {Role.EDGE: None, Role.SERVER: "the peer closed the connection"}
        rig.edge.close()
        rig.server.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(rig.reasons) == 2

    run(scenario)


def test_a_server_may_refuse_at_once():
    async def scenario():
        rig = Rig(refusal="too many are here")
        await rig.until(lambda: len(rig.reasons) == 2)
        assert rig.told == [Error(0, ErrorCode.BUSY, True, "too many are here")]

    run(scenario)


def test_an_error_of_a_handler_ends_the_connection():
    async def scenario():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, about: told.append(about))
        rig = await Rig().greet()
        rig.server._on_message = None  # whatever is called, fails
        rig.edge.send(opening(1))
        await rig.until(lambda: len(rig.reasons) == 2)
        assert [type(about["exception"]) for about in told] == [TypeError]

    run(scenario)


def test_proofs_are_bound_to_the_certificate_that_others_see():
    async def scenario():
        rig = Rig(certificate=b"c" * 32)
        assert rig.edge.certificate == b"c" * 32
        assert Rig().edge.certificate == NO_CERTIFICATE

    run(scenario)
