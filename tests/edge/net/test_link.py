"""What a link still gives when it is lost."""

import asyncio
from pathlib import Path

import pytest

from runtime.edge.net.link import Link, Sampling, ServerError
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
