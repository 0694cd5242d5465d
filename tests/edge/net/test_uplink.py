"""How long an edge looks for a lost server, and that all its requests find one link again."""

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest

from runtime.edge.net.link import ServerError
from runtime.edge.net.uplink import FIRST_WAIT_S, LONGEST_WAIT_S, Retries, Uplink
from runtime.wire.messages import ErrorCode
from tests.faults.rig import Rig, until


def waits(seed: int, total_s: float) -> list[float]:
    """All waits until the time is over, if every attempt fails at once."""
    retries, now_s, result = Retries(total_s, random.Random(seed)), 100.0, list[float]()
    while (wait_s := retries.next_wait_s(now_s)) is not None:
        result.append(wait_s)
        now_s += wait_s
    return result


@pytest.mark.parametrize("seed", range(20))
def test_waits_double_up_to_a_limit_and_end_in_time(seed: int) -> None:
    drawn = waits(seed, 60.0)
    assert sum(drawn) == pytest.approx(60.0), "the last attempt is at the very end"
    for number, wait_s in enumerate(drawn):
        assert 0 <= wait_s <= min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S)
    assert max(drawn) > LONGEST_WAIT_S / 2


def test_a_thousand_edges_do_not_come_at_once() -> None:
    firsts = sorted(waits(seed, 60.0)[0] for seed in range(1000))
    assert max(b - a for a, b in pairwise(firsts)) < FIRST_WAIT_S / 20


def test_success_begins_anew() -> None:
    retries = Retries(1.0)
    while retries.next_wait_s(0.9 if retries.begun else 0.0):
        if retries._wait_s > 0.5:
            break
    assert retries.next_wait_s(1.0) is None
    retries.succeeded()
    assert not retries.begun
    assert 0 <= retries.next_wait_s(50.0) <= FIRST_WAIT_S


def test_no_time_is_no_second_attempt() -> None:
    error = ServerError("nothing listens there")
    with pytest.raises(ServerError, match=r"^nothing listens there$"):
        asyncio.run(Retries(0.0).wait(error))


def test_requests_that_lost_one_link_share_the_next(tiny_pair: tuple[Path, Path]) -> None:
    async def attempt() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        uplink = Uplink("127.0.0.1", rig.port, rig.hello)
        first = await uplink.link()
        assert await uplink.link() is first
        assert uplink.bytes_sent == first.bytes_sent > 0
        assert uplink.bytes_received == first.bytes_received > 0
        assert uplink.rtt_s == first.rtt_s
        await rig.kill()
        await rig.start()
        await until(lambda: not uplink.alive)
        links = await asyncio.gather(*(uplink.link() for _ in range(5)))
        assert len(set(links)) == 1
        assert links[0] is not first
        assert uplink.opened == 2
        assert uplink.bytes_sent == first.bytes_sent + links[0].bytes_sent
        await uplink.close()
        assert uplink.bytes_sent == first.bytes_sent + links[0].bytes_sent
        assert uplink.bytes_received == first.bytes_received + links[0].bytes_received
        assert uplink.rtt_s == 0, "there is no link"
        await rig.kill()

    asyncio.run(attempt())


def test_reasons_are_told_apart(tiny_pair: tuple[Path, Path]) -> None:
    """No connection has no code; a server's refusal has its own."""

    async def attempt() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        uplink = Uplink("127.0.0.1", rig.port, rig.hello)
        other = Uplink("127.0.0.1", rig.port, type(rig.hello)(1, 9, bytes(16), "other"))
        with pytest.raises(ServerError) as refusal:
            await other.link()
        assert refusal.value.code is ErrorCode.VOCABULARY
        await rig.kill()
        with pytest.raises(ServerError, match="nothing listens there") as absence:
            await uplink.link()
        assert absence.value.code is None

    asyncio.run(attempt())
