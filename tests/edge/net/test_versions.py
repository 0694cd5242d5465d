"""An edge that makes offers, and a server that is older than they are."""

import asyncio
from dataclasses import replace

from runtime.edge.net.link import Link
from runtime.wire import messages as wire
from runtime.wire.frames import HEADER, decode_body, decode_header, encode_frame

HELLO = wire.Hello(wire.OFFERS_VERSION, 260, bytes(16), "of offers")


def test_an_edge_comes_again_without_offers_where_they_are_not_known() -> None:
    heard: list[wire.Hello] = []

    async def old_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = decode_header(await reader.readexactly(HEADER.size))
        body = await reader.readexactly(header.length - HEADER.size)
        hello = decode_body(header, body, 0)
        assert isinstance(hello, wire.Hello)
        heard.append(hello)
        answer: wire.Message = wire.Welcome(1, 260, bytes(16), 8, 100, 1, "old")
        if hello.version != wire.VERSION:
            sentence = "the peer speaks STF version 2, this side version 1"
            answer = wire.Error(0, wire.ErrorCode.VERSION, fatal=True, sentence=sentence)
        writer.write(encode_frame(answer, 0, 0))
        await reader.read()
        writer.close()

    async def greeted() -> bool:
        server = await asyncio.start_server(old_server, "127.0.0.1", 0)
        async with server:
            link = await Link.open(*server.sockets[0].getsockname()[:2], HELLO)
            has_offers = link.has_offers
            await link.close()
        return has_offers

    assert not asyncio.run(asyncio.wait_for(greeted(), 60))
    assert [hello.version for hello in heard] == [wire.OFFERS_VERSION, wire.VERSION]
    assert replace(heard[0], nonce=heard[1].nonce, version=1) == heard[1]
