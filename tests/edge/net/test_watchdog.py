"""The watchdog by hand, and on a link to a server that is busy for a long time."""

import asyncio
import threading
from pathlib import Path

import pytest

from runtime.edge.net.uplink import Uplink
from runtime.edge.net.watchdog import FIRST_PATIENCE_S, Sign, Watchdog
from runtime.model.engine import Engine
from runtime.sampling import Sampling
from tests.faults.rig import Rig, until


def test_silence_is_asked_about_and_then_death() -> None:
    dog = Watchdog()
    signs = [dog.look(heard_bytes=100, sent_bytes=0, waiting=True) for _ in range(3)]
    assert signs == [Sign.FINE, Sign.ASK, Sign.DEAD]


def test_a_pong_puts_death_off() -> None:
    dog = Watchdog()
    dog.look(100, 0, waiting=True)
    for heard in range(100, 1000, 16):
        assert dog.look(heard, 0, waiting=True) is Sign.ASK
        dog.saw_pong()
        assert dog.look(heard + 16, 0, waiting=True) is Sign.FINE, "the Pong's own bytes"


def test_other_bytes_do_not_count_as_the_pong() -> None:
    """A second Ping before the first Pong would break the protocol."""
    dog = Watchdog()
    signs = [dog.look(heard, 0, waiting=True) for heard in (10, 10, 30, 50, 50)]
    assert signs == [Sign.FINE, Sign.ASK, Sign.FINE, Sign.FINE, Sign.DEAD]


def test_an_upload_has_the_time_of_a_slow_link() -> None:
    """20 kB that nobody has answered take 40 s at 500 bytes a second."""
    dog = Watchdog(patience_s=5.0)
    dog.look(100, 20_000, waiting=True)
    signs = [dog.look(100, 20_000, waiting=True) for _ in range(9)]
    assert signs == [Sign.ASK, *[Sign.FINE] * 7, Sign.DEAD]


def test_what_was_answered_has_been_uploaded() -> None:
    dog = Watchdog(patience_s=5.0)
    dog.saw_arrival(19_500)
    signs = [dog.look(100, 20_000, waiting=True) for _ in range(3)]
    assert signs == [Sign.FINE, Sign.ASK, Sign.DEAD]
    dog.saw_pong()
    dog.saw_arrival(7)  # of an older request
    signs = [dog.look(100, 20_000, waiting=True) for _ in range(2)]
    assert signs == [Sign.ASK, Sign.DEAD]


def test_a_pong_tells_that_all_before_its_ping_has_arrived() -> None:
    dog = Watchdog(patience_s=5.0)
    dog.look(100, 20_000, waiting=True)
    assert dog.look(100, 20_000, waiting=True) is Sign.ASK
    dog.saw_pong()
    assert [dog.look(100, 20_000, waiting=True) for _ in range(2)] == [Sign.ASK, Sign.DEAD]


def test_time_in_which_nobody_waited_is_no_silence() -> None:
    """An upload of 40 s of which 20 have passed begins anew with the next request."""
    dog = Watchdog(patience_s=5.0)
    dog.look(100, 20_000, waiting=True)
    signs = [dog.look(100, 20_000, waiting=True) for _ in range(5)]
    assert signs == [Sign.ASK, *[Sign.FINE] * 4]
    assert {dog.look(100, 20_000, waiting=False) for _ in range(20)} == {Sign.FINE}
    signs = [dog.look(100, 20_000, waiting=True) for _ in range(8)]
    assert signs == [*[Sign.FINE] * 7, Sign.DEAD]


def test_nobody_waits_nobody_asks() -> None:
    dog = Watchdog()
    assert {dog.look(0, 0, waiting=False) for _ in range(9)} == {Sign.FINE}


@pytest.mark.parametrize(
    ("rounds", "patience_s"),
    [
        ([], FIRST_PATIENCE_S),
        ([(0.05, 0.02)], 1.02),
        ([(0.05, 0.02), (0.05, 3.0)], 4.0),
        ([(2.0, 0.5)], 8.0),
        ([(2.0, 0.5), (4.0, 0.5)], 10.0),
    ],
)
def test_patience_follows_the_rounds(rounds: list[tuple[float, float]], patience_s: float) -> None:
    """The larger of four usual rounds, and of a second and the verification."""
    dog = Watchdog()
    for round_s, verify_s in rounds:
        dog.saw_round(round_s, verify_s)
    assert dog.patience_s == pytest.approx(patience_s)


def test_a_busy_server_is_not_given_up(tiny_pair: tuple[Path, Path]) -> None:
    """Its model thread is stuck; its event loop answers Pings. The test says when time is over."""

    class Noting(Watchdog):
        def look(self, heard_bytes: int, sent_bytes: int, waiting: bool) -> Sign:
            signs.append(super().look(heard_bytes, sent_bytes, waiting))
            return signs[-1]

    signs: list[Sign] = []

    async def attempt() -> None:
        rig, stuck = Rig(tiny_pair[0]), threading.Event()
        await rig.start()
        uplink = Uplink("127.0.0.1", rig.port, rig.hello)
        link = await uplink.link()
        dog = link._watchdog = Noting(patience_s=3600)
        engine = rig.server.engine
        engine.run = lambda *step: stuck.wait() and Engine.run(engine, *step)
        request = link.request([1, 2, 3], Sampling(max_tokens=1))
        try:
            while signs.count(Sign.ASK) < 3 and link.alive:
                link._watch()
                await until(lambda: not dog._asked)
        finally:
            stuck.set()
        assert (await request.verdict()).finish
        await uplink.close()
        await rig.kill()

    asyncio.run(attempt())
    assert Sign.DEAD not in signs
