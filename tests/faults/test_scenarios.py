"""Every fault at every moment, and random schedules of faults: the text is that without faults."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from runtime.edge.draft.drafter import Drafter
from runtime.edge.net import link
from runtime.edge.net.watchdog import Watchdog
from runtime.wire.messages import ErrorCode
from tests.faults.amounts import amount
from tests.faults.moments import SIGHTS, Moment
from tests.faults.rig import no_descriptor_left
from tests.faults.scenarios import Play, What, scenario, schedule

ENDS = (What.CUT, What.RESET, What.SERVER_KILLED, What.SERVER_DRAINED)
STOPS = (What.EDGE_CANCELLED, What.EDGE_KILLED)
SILENT = (What.HALF_OPEN, What.DEAF_SERVER, What.DEAF_EDGE)
BAD_LINKS = (What.DELAY, What.JITTER, What.THROTTLE, What.SLICE, What.STALL)

CASES = (
    [(what, moment) for what in (*ENDS, *STOPS) for moment in Moment]
    + [(What.FLIP, moment) for moment in SIGHTS]
    + [(what, moment) for what in BAD_LINKS for moment in (Moment.HANDSHAKE, Moment.TREE)]
    + [(what, moment) for what in SILENT for moment in (Moment.TREE, Moment.VERDICT)]
)

# how fast the machine is plays no part in which moments there are
pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(scope="module")
def plain(
    tiny_pair: tuple[Path, Path], drafter: Drafter, tmp_path_factory: pytest.TempPathFactory
) -> list[list[int]]:
    """The texts without faults."""
    play = Play(tiny_pair[0], drafter, tmp_path_factory.mktemp("plain"), [])
    texts = asyncio.run(play.run())
    assert [len(text) for text in texts] == [30, 12]
    return texts


@pytest.fixture(autouse=True)
def nothing_is_left(plain: list[list[int]]) -> Iterator[None]:
    """Descriptors and threads of a case are gone at its end; those of earlier tests may be too."""
    threads = threading.active_count()
    with no_descriptor_left():
        yield
    assert threading.active_count() <= threads


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is silent from its beginning in some cases: they need not wait for ten seconds."""
    monkeypatch.setattr(link, "Watchdog", lambda: Watchdog(patience_s=1.0))


def goes_on(what: What, moment: Moment) -> bool:
    """Whether the connection outlives the fault: a cancelled request leaves it to the next one."""
    return what in BAD_LINKS or (what is What.EDGE_CANCELLED and moment is not Moment.HANDSHAKE)


def allowed(whats: Iterable[What]) -> set[ErrorCode]:
    """What may end a request: nonsense that the server was sent, and its stop before it began."""
    ends = {What.FLIP: ErrorCode.PROTOCOL, What.SERVER_DRAINED: ErrorCode.DRAINING}
    return {ends[what] for what in whats if what in ends}


@pytest.mark.parametrize(
    ("what", "moment"), CASES, ids=[f"{what.name}-{moment.name}".lower() for what, moment in CASES]
)
def test_a_fault_at_a_moment(
    tiny_pair: tuple[Path, Path],
    drafter: Drafter,
    plain: list[list[int]],
    tmp_path: Path,
    what: What,
    moment: Moment,
) -> None:
    play = Play(tiny_pair[0], drafter, tmp_path, scenario(what, moment))
    assert asyncio.run(play.run()) == plain
    assert play.connections == (1 if goes_on(what, moment) else 2)
    assert {error.code for error in play.errors} <= allowed([what])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        seeds = amount(metafunc.config, "schedules", default=20)
        long = [pytest.param(seed, marks=pytest.mark.long) for seed in seeds[6:]]
        metafunc.parametrize("seed", [*seeds[:6], *long])


def test_a_random_schedule(
    tiny_pair: tuple[Path, Path],
    drafter: Drafter,
    plain: list[list[int]],
    tmp_path: Path,
    seed: int,
) -> None:
    play = Play(tiny_pair[0], drafter, tmp_path, schedule(seed))
    assert asyncio.run(play.run()) == plain
    assert {error.code for error in play.errors} <= allowed([what for what, _ in play.events])
