"""What one user may hold of the places while there are others."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime.edge.net.link import Credentials, Link
from runtime.sampling import Sampling
from runtime.server.users import add_user
from runtime.wire import messages as wire
from tests.faults.rig import Rig, until

PLACES = 4


@pytest.mark.parametrize(
    ("names", "options", "running"),
    [
        (("alice", "bob"), {}, PLACES // 2),
        (("alice",), {}, PLACES),
        (("alice", "bob"), {"max_user_running": 3}, 3),
    ],
)
def test_a_place_is_left_for_another_user_by_default(
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    names: tuple[str, ...],
    options: dict[str, Any],
    running: int,
) -> None:
    """One user asks for more than there is; those beyond its share wait, and run when it ends."""
    tokens = {name: add_user(tmp_path / "users", name).encode() for name in names}

    async def scenario() -> None:
        rig = Rig(tiny_pair[0], users=str(tmp_path / "users"), max_requests=PLACES, **options)
        await rig.start()
        scheduler = rig.server.scheduler

        async def connect(name: str) -> Link:
            hello = wire.Hello(1, rig.hello.vocabulary_size, rig.hello.vocabulary_hash, "t", name)
            return await Link.open("127.0.0.1", rig.port, hello, Credentials(tokens[name]))

        links = [await connect(name) for name in names]
        greedy = [links[0].request([1, 2, 3], Sampling(50)) for _ in range(2 * PLACES)]
        await until(lambda: len(scheduler.running) + len(scheduler.waiting) == 2 * PLACES)
        assert len(scheduler.running) == running
        for link in links[1:]:
            assert (await link.request([1, 2], Sampling(1), max_nodes=0).verdict()).finish
        greedy[0].close()
        await until(lambda: len(scheduler.waiting) == 2 * PLACES - running - 1)
        assert len(scheduler.running) == running
        for link in links:
            await link.close()
        await until(rig.holds_nothing)
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))
