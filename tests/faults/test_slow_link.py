"""A link so slow that a prompt is under way for longer than a server may be silent."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.net import link
from runtime.edge.net.uplink import Uplink
from runtime.edge.net.watchdog import Watchdog
from runtime.edge.resume import Transcript, resuming
from runtime.model.open import open_engine
from runtime.sampling import Sampling
from tests.faults.proxy import Proxy, Shape
from tests.faults.rig import Rig
from tests.faults.scenarios import DRAFTING

PROMPT = [7 * place % 250 for place in range(900)]  # about 1 kB


async def ask(model: Path, drafter: Drafter, shape: Shape) -> tuple[list[int], int]:
    """The answer over a link of this shape, and the connections that it took."""
    rig = Rig(model)
    await rig.start()
    async with Proxy([], shape).before("127.0.0.1", rig.port) as proxy:
        uplink, batcher = Uplink(*proxy.address, rig.hello), Batcher(drafter)
        answer = Transcript(list(PROMPT), Sampling(5))
        async with aclosing(resuming(uplink, batcher, answer, DRAFTING, 60.0)) as rounds:
            async for _ in rounds:
                pass
        await uplink.close()
        await batcher.close()
    await rig.kill()
    return answer.accepted, proxy.connections


def test_a_prompt_that_takes_long_is_sent_once(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """900 bytes a second; a link on which nothing is under way is given up after 0.4 s."""
    monkeypatch.setattr(link, "Watchdog", lambda: Watchdog(patience_s=0.2))
    drafter = Drafter(open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 1024, 16))
    plain, _ = asyncio.run(ask(tiny_pair[0], drafter, Shape()))
    assert len(plain) == 5
    slow = Shape(bytes_per_s=900, piece_bytes=100)
    assert asyncio.run(ask(tiny_pair[0], drafter, slow)) == (plain, 1)
