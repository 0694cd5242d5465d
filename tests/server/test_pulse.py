"""When an edge is asked whether it is there, and when what it sends says so already."""

import asyncio
from pathlib import Path

from runtime.edge.net.link import Link, Sampling
from runtime.tree import Tree
from runtime.wire import messages as wire
from tests.faults.rig import Rig, until

PROMPT = [1, 2, 3]


def test_an_edge_is_not_asked_while_it_sends_trees_and_is_once_it_sends_none(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        request = link.request(PROMPT, Sampling(900))
        assert (await request.verdict()).turn is wire.Turn.EDGE
        (pulse,) = rig.server.edges.pulses.values()
        await until(pulse.may_ask)  # what its request began with is answered

        request.send(len(PROMPT) + 1, Tree((5, 6), (0, 0)))
        await request.verdict()
        rig.server.watch.look()
        assert pulse.may_ask(), "asked, although a tree has come since the last look"
        assert pulse.silent_s == 0

        rig.server.watch.look()
        assert not pulse.may_ask(), "not asked, although no tree has come since the last look"
        await until(pulse.may_ask)
        request.close()
        await link.close()
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))
