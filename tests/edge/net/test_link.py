"""What a link still gives when it is lost, and the numbers of its requests."""

import asyncio
from pathlib import Path

import pytest

from runtime.edge.net.link import Link, ServerError
from runtime.sampling import Sampling
from runtime.wire.messages import ErrorCode
from tests.faults.rig import Rig, until


def test_verdicts_that_came_before_the_end_of_the_link_are_read(
    tiny_pair: tuple[Path, Path],
) -> None:
    """A reader that is behind loses nothing when the server ends."""

    async def scenario() -> list[int]:
        rig = Rig(tiny_pair[0])
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        requests = [link.request([1, 2, 3], Sampling(tokens), max_nodes=0) for tokens in (9, 500)]
        verdicts = [await requests[0].verdict() for _ in range(9)]
        assert verdicts[-1].finish
        await until(lambda: link._inboxes[2].qsize() > 20)
        await rig.kill()
        await until(lambda: not link.alive)
        told = [(await requests[1].verdict()).bonus for _ in range(20)]
        while requests[1].has_mail and link._inboxes[2]._queue[0] is not None:
            await requests[1].verdict()
        for _ in range(2):
            with pytest.raises(ServerError):
                await requests[1].verdict()
        await link.close()
        assert told[:9] == [verdict.bonus for verdict in verdicts]
        return told

    assert len(asyncio.run(asyncio.wait_for(scenario(), 60))) == 20


def test_numbers_of_requests_go_round_past_those_in_use(tiny_pair: tuple[Path, Path]) -> None:
    """One that runs, one that has ended unread, and one whose cancelling is not answered yet."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        runs = link.request([1, 2, 3], Sampling(900), max_nodes=0)
        unread = link.request([1, 2, 3], Sampling(1), max_nodes=0)
        await until(lambda: unread.has_mail)
        cancelled = link.request([1, 2, 3], Sampling(900), max_nodes=0)
        cancelled.close()
        link._last_number = 65534
        numbers = [link.request([1, 2, 3], Sampling(1), max_nodes=0) for _ in range(2)]
        assert [runs.number, unread.number, cancelled.number] == [1, 2, 3]
        assert [request.number for request in numbers] == [65535, 4]
        assert (await numbers[1].verdict()).finish
        assert not (await runs.verdict()).finish
        await link.close()
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_more_requests_than_a_server_allows_are_refused_with_a_sentence(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        rig = Rig(tiny_pair[0], max_user_requests=2)
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        for _ in range(2):
            link.request([1, 2, 3], Sampling(900), max_nodes=0)
        with pytest.raises(ServerError, match="2 requests are running, as many as") as refused:
            link.request([1, 2, 3], Sampling(900), max_nodes=0)
        assert refused.value.code is ErrorCode.BUSY
        assert link.alive
        await link.close()
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))
