"""Pages and credits are held by different requests: who waits for one must not lock the other."""

import asyncio

from bench.stub_edges import HELLO
from runtime.edge.net.link import Link
from runtime.sampling import Sampling
from runtime.server.policy.window import Place
from runtime.tree import Tree
from runtime.wire import messages as wire
from tests.server.test_overload import rig

NODES, PAGE_TOKENS = 32, 16
OLD, YOUNG = [7] * 78, [9] * 12  # five pages and one; with a draft seven and three
WRONG = Tree(tuple(range(100, 100 + NODES)), (0,) * NODES)


def test_a_draft_that_waits_for_pages_keeps_nobody_from_sending_another() -> None:
    """The younger request's tree has the only credit and waits for the pages of the older one,
    which waits for a credit."""

    async def scenario() -> None:
        limits = {"kv_tokens": 9 * PAGE_TOKENS, "max_nodes": NODES, "max_step_nodes": 64}
        async with rig(**limits, max_batch=1, pipeline=False) as server:
            server.gate.set()
            pipeline = server.server.pipeline
            # one credit for all, however slow they are
            pipeline._place = lambda request, now_s: Place(step=1, steps=1, batch=1)
            pipeline.credits.window.expire = lambda now_s: None
            link = await Link.open(*server.address, HELLO)
            old = link.request(OLD, Sampling(4), NODES)
            assert (await old.verdict()).turn is wire.Turn.EDGE
            young = link.request(YOUNG, Sampling(4), NODES)
            assert (await young.verdict()).turn is wire.Turn.WAIT
            old.send(len(OLD) + 1, WRONG)
            await young.credit()
            assert (await old.verdict()).turn is wire.Turn.WAIT
            young.send(len(YOUNG) + 1, WRONG)
            await old.credit()
            old.send(len(OLD) + 2, Tree())
            await old.verdict()
            await link.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
