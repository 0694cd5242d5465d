"""Edges that say nothing more: what they held comes free, and they find their text again.

The server's looks after its edges are made by hand: no test waits for the time they stand for.
"""

import asyncio
import os
import re
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtime.edge.net.asking import opening
from runtime.edge.net.link import Link, Request, ServerError
from runtime.sampling import Sampling
from runtime.server import watch
from runtime.server.pulse import LOOK_S
from runtime.wire import messages as wire
from runtime.wire.tcp import FramedProtocol
from tests.faults.rig import Rig, until
from tests.processes import Child

SILENCE_S = 30
LOOKS = int(SILENCE_S / LOOK_S)
PROMPT = [1, 2, 3]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


@pytest.fixture(autouse=True)
def only_these_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """None by the clock: how long a test takes would count."""
    monkeypatch.setattr(watch.Watch, "forever", lambda self: asyncio.Event().wait())


async def look(rig: Rig, silent: FramedProtocol | None = None) -> None:
    """One look; all but the silent edge have the time to answer."""
    await rig.server.watch.look()
    others = [pulse for peer, pulse in rig.server.edges.pulses.items() if peer is not silent]
    await until(lambda: all(pulse.may_ask() for pulse in others))


def test_a_frozen_edge_process_gives_its_place_up_and_goes_on_when_it_thaws(
    tiny_pair: tuple[Path, Path],
) -> None:
    """SIGSTOP, while its system goes on confirming what comes; then SIGCONT."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0], max_requests=1)
        await rig.start()
        command = ["runtime.edge", "--server", f"127.0.0.1:{rig.port}", "--raw", "--no-stats"]
        command += ["--draft", str(tiny_pair[1]), "--threads", "1", "--max-tokens", "200"]
        frozen = Child(*command, "--prompt", "Once upon a time")
        scheduler = rig.server.scheduler
        await until(lambda: any(request.round > 3 for request in scheduler.running))
        os.kill(frozen.pid, signal.SIGSTOP)
        (victim,) = rig.server.edges.pulses
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        waiting = link.request(PROMPT, Sampling(5), max_nodes=0)
        await until(lambda: len(scheduler.waiting) == 1)
        for _ in range(LOOKS + 1):
            assert not waiting.has_mail
            await look(rig, silent=victim)
        verdicts = [await waiting.verdict() for _ in range(5)]
        assert verdicts[-1].finish
        os.kill(frozen.pid, signal.SIGCONT)
        told = await frozen.end()
        await link.close()
        await until(rig.holds_nothing)
        assert victim.ended_with is wire.ErrorCode.TIMEOUT
        assert told == await Child(*command, "--prompt", "Once upon a time").end()
        assert told[1] == 0
        await rig.kill()

    run(scenario())


def test_an_edge_that_answers_pings_is_not_silent_however_long_its_request_waits(
    tiny_pair: tuple[Path, Path],
) -> None:
    async def scenario() -> None:
        rig = Rig(tiny_pair[0], max_requests=1)
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        holder = link.request(PROMPT, Sampling(900))
        await holder.verdict()
        waiting = link.request(PROMPT, Sampling(5), max_nodes=0)
        for _ in range(4 * LOOKS):
            await look(rig)
        holder.close()
        assert [(await waiting.verdict()).finish for _ in range(5)][-1]
        await link.close()
        await rig.kill()

    run(scenario())


def test_a_first_pong_that_took_four_seconds_is_forgotten_at_the_next(
    tiny_pair: tuple[Path, Path],
) -> None:
    """The edge did not listen yet. That drafting resumes then: test_pipeline.py."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        link._peer._transport.pause_reading()
        request = link.request(PROMPT, Sampling(900), max_nodes=0)
        (pulse,) = rig.server.edges.pulses.values()
        await until(lambda: not pulse.may_ask())
        pulse._asked_s -= 4.0
        link._peer._transport.resume_reading()
        await until(pulse.may_ask)
        (state,) = rig.server.requests.values()
        await until(lambda: state.edge.rtt_s.value > 4.0)
        await look(rig)
        assert pulse.rtt_s < 1.0
        await until(lambda: state.edge.rtt_s.value < 1.0)
        request.close()
        await link.close()
        await rig.kill()

    run(scenario())


@pytest.mark.parametrize("owed", ["the rest of its prompt", "its draft"])
def test_an_edge_that_owes_something_for_too_long_loses_that_request_alone(
    tiny_pair: tuple[Path, Path], owed: str
) -> None:
    """It answers Pings; a prompt that was sent by half, and a turn that is never used."""

    async def scenario() -> None:
        rig = Rig(tiny_pair[0])
        await rig.start()
        link = await Link.open("127.0.0.1", rig.port, rig.hello)
        if owed == "its draft":
            request, most = link.request(PROMPT, Sampling(900)), watch.DRAFTING_SILENCES * LOOKS
            assert (await request.verdict()).turn is wire.Turn.EDGE
        else:
            most, half = LOOKS, link._free_number()
            link._inboxes[half] = asyncio.Queue()
            link._peer.send(opening(Sampling(9), half, 5, 0))
            link._peer.send(wire.Prompt(half, (1, 2)))
            request = Request(link, half, 0)
        await until(lambda: any(r.is_owed for r in rig.server.requests.values()))
        for _ in range(most - 1):
            await look(rig)
        assert not request.has_mail
        await look(rig)
        with pytest.raises(ServerError, match=f"{owed} has not come for") as ended:
            await request.verdict()
        assert ended.value.code is wire.ErrorCode.TIMEOUT
        other = link.request(PROMPT, Sampling(2), max_nodes=0)
        assert [(await other.verdict()).finish for _ in range(2)][-1]
        await link.close()
        await until(rig.holds_nothing)
        await rig.kill()

    run(scenario())


def test_who_waits_in_line_is_told_where_and_how_long(
    tiny_pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        rig = Rig(tiny_pair[0], max_requests=1)
        await rig.start()
        links = [await Link.open("127.0.0.1", rig.port, rig.hello) for _ in range(2)]
        holder = links[0].request(PROMPT, Sampling(900))
        await holder.verdict()
        waiting = [links[1].request(PROMPT, Sampling(900)) for _ in range(2)]
        await until(lambda: len(rig.server.scheduler.waiting) == 2)
        rig.server.watch.tell_line()
        await until(
            lambda: told(caplog) == ["2 of your requests wait, the first as number 1 in line"]
        )
        waiting[0].close()
        await until(lambda: len(rig.server.scheduler.waiting) == 1)
        rig.server.edges.left = 2  # as if so many had ended since the last look
        await look(rig)
        rig.server.watch.tell_line()
        await until(lambda: len(told(caplog)) == 2)
        assert re.fullmatch(
            r"1 of your requests wait, the first as number 1 in line: about 1 s", told(caplog)[1]
        )
        for link in links:
            await link.close()
        await rig.kill()

    run(scenario())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server has said to its edges."""
    said = [record for record in caplog.records if record.getMessage() == "the server says"]
    return [record.fields["reason"] for record in said]
