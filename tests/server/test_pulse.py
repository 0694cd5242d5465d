"""When an edge is asked whether it is there, and when what it sends says so already."""

import asyncio
from pathlib import Path

from runtime.edge.net.link import Link
from runtime.sampling import Sampling
from runtime.server.pulse import LOOK_S, TREE_LOOKS, TRIPS, Pulse
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
        for looks in range(TREE_LOOKS):
            await rig.server.watch.look()
            assert pulse.may_ask(), f"asked, although a tree has come {looks} looks ago"
            assert pulse.silent_s == looks * LOOK_S

        await rig.server.watch.look()
        assert not pulse.may_ask(), f"not asked, although no tree has come for {TREE_LOOKS} looks"
        await until(pulse.may_ask)
        request.close()
        await link.close()
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_edge_that_sends_trees_is_asked_in_time_where_little_silence_is_allowed() -> None:
    pulse, heard_bytes = Pulse(), 0
    for _ in range(3):
        pulse.drafted()
        pulse.look(heard_bytes := heard_bytes + 40)
        assert not pulse.is_to_be_asked(silence_s=2 * LOOK_S)
    pulse.look(heard_bytes)
    assert pulse.is_to_be_asked(silence_s=2 * LOOK_S)
    assert not pulse.is_to_be_asked(silence_s=30)
    pulse.look(heard_bytes + 16)  # its answer
    assert not pulse.is_to_be_asked(silence_s=2 * LOOK_S)


def test_an_edge_that_sends_no_trees_is_asked_although_it_is_heard() -> None:
    """Other messages do not tell how far away it is."""
    pulse, heard_bytes = Pulse(), 0
    pulse.drafted()
    asked = []
    for _ in range(2 * TREE_LOOKS):
        pulse.look(heard_bytes := heard_bytes + 40)
        asked.append(pulse.is_to_be_asked(silence_s=30))
    assert asked == [False] * TREE_LOOKS + [True] * TREE_LOOKS


def test_a_round_trip_is_the_shortest_of_the_last_few() -> None:
    """The others waited for something; but an edge may also have come to be farther away."""
    pulse = Pulse()
    assert pulse.rtt_s is None
    took_s = (3.0, 1.0, 2.0, 4.0, 5.0, 6.0)
    told = []
    for number, trip_s in enumerate(took_s):
        assert pulse.may_ask()
        pulse.asked(100.0 * number)
        assert not pulse.may_ask()
        assert pulse.answered(100.0 * number + trip_s) == trip_s
        told.append(pulse.rtt_s)
    assert TRIPS == 4
    assert told == [3.0, 1.0, 1.0, 1.0, 1.0, 2.0]


def test_an_edge_that_leaves_during_a_look_is_passed_over_and_the_others_are_asked(
    tiny_pair: tuple[Path, Path],
) -> None:
    """A look at thousands of edges lets messages and verdicts through in between."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        links = [await Link.open("127.0.0.1", rig.port, rig.hello) for _ in range(3)]
        requests = [link.request(PROMPT, Sampling(900)) for link in links]
        for request in requests:
            await request.verdict()
        pulses = rig.server.edges.pulses
        await until(lambda: all(pulse.may_ask() for pulse in pulses.values()))

        looked_at = rig.server.watch._by_edge()
        assert len(looked_at) == 3
        await links[1].close()
        await until(lambda: len(pulses) == 2)
        requests[2].close()
        await until(lambda: len(rig.server.requests) == 1)
        for peer, theirs in looked_at:
            rig.server.watch._look_at(peer, theirs)
        assert not any(pulse.may_ask() for pulse in pulses.values()), "an edge was passed over"
        await links[0].close()
        await links[2].close()
        await rig.kill()

    asyncio.run(asyncio.wait_for(scenario(), 60))
