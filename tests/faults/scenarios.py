"""Two answers over one uplink while something happens: what the edge was told, in the end.

An edge and a server of this process with a `Proxy` between them. Judging is the business of the
tests; here nothing is forgiven but what a scenario is about.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import cycle
from pathlib import Path
from typing import Any

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import TreeShape
from runtime.edge.loop import Drafting
from runtime.edge.net.link import ServerError
from runtime.edge.net.uplink import Uplink
from runtime.edge.resume import Transcript, resuming
from runtime.edge.resume_file import ResumeFile, load
from runtime.sampling import Sampling
from runtime.server.policy.window import Place
from tests.faults.moments import Moment
from tests.faults.proxy import Fault, Kind, Proxy, Shape
from tests.faults.rig import Rig, until

PROMPT = [7, 3, 200, 41, 5, 99, 12]
SAMPLINGS = (Sampling(30), Sampling(12, temperature=1.0, seed=5))
DRAFTING = Drafting(TreeShape(8, 3, 3, 3))


class What(Enum):
    """The faults of the scenarios; those after FLIP are no business of the link."""

    CUT = auto()
    RESET = auto()
    HALF_OPEN = auto()
    DEAF_SERVER = auto()  # what goes up vanishes
    DEAF_EDGE = auto()  # what goes down vanishes
    DELAY = auto()
    JITTER = auto()
    THROTTLE = auto()
    SLICE = auto()
    STALL = auto()
    FLIP = auto()
    SERVER_KILLED = auto()
    SERVER_DRAINED = auto()
    EDGE_CANCELLED = auto()
    EDGE_KILLED = auto()  # and resumed from its file


LINK_FAULTS = {
    What.CUT: Fault(Kind.CUT, True),
    What.RESET: Fault(Kind.RESET, True),
    What.HALF_OPEN: Fault(Kind.HALF_OPEN, True),
    What.DEAF_SERVER: Fault(Kind.ONE_WAY, True),
    What.DEAF_EDGE: Fault(Kind.ONE_WAY, False),
    What.DELAY: Fault(Kind.SHAPE, True, shape=Shape(delay_s=0.01)),
    What.JITTER: Fault(Kind.SHAPE, True, shape=Shape(jitter_s=0.02)),
    What.THROTTLE: Fault(Kind.SHAPE, True, shape=Shape(bytes_per_s=20_000)),
    What.SLICE: Fault(Kind.SHAPE, True, shape=Shape(piece_bytes=1)),
    What.STALL: Fault(Kind.STALL, True),
    What.FLIP: Fault(Kind.FLIP, True),
}


@dataclass
class Edge:
    """An edge process as far as an answer needs one; with a file it can be killed."""

    address: tuple[str, int]
    rig: Rig
    drafter: Drafter
    file: Path
    stack: str = ""  # that it connects by
    uplink: Uplink = field(init=False)
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.uplink = Uplink(*self.address, self.rig.hello, stack=self.stack)
        self.batcher = Batcher(self.drafter)

    async def ask(self, answer: Transcript, see: "Seer") -> list[int]:
        """The whole answer, `answer.accepted` included. Each round is checked and kept."""
        told = list(answer.accepted)
        file = ResumeFile(self.file, self.rig.hello.vocabulary_hash)
        rounds = resuming(self.uplink, self.batcher, answer, DRAFTING, reconnect_s=30.0)
        async with aclosing(rounds):
            async for round_ in rounds:
                told += round_.tokens
                assert told == answer.accepted, "a token was lost or doubled"
                if round_.verdict.finish:
                    file.remove()
                else:
                    file.keep(answer, round_.tokens)
                see(Moment.HIT if round_.commit.hit else Moment.MISS)
        return told

    def saved(self, sampling: Sampling) -> Transcript:
        """What a new process begins with."""
        if self.file.exists():
            return load(self.file, self.rig.hello.vocabulary_hash)
        return Transcript(list(PROMPT), sampling)

    async def close(self) -> None:
        await self.uplink.close()
        await self.batcher.close()


@dataclass
class Seer:
    """Strikes when the edge says that the moment has come."""

    proxy: Proxy
    moment: Moment | None

    def __call__(self, moment: Moment) -> None:
        if moment is self.moment:
            self.proxy.strike_now()


@dataclass
class Play:
    """One scenario: a rig behind a proxy, and an edge that asks for two answers."""

    model: Path
    drafter: Drafter
    folder: Path
    events: Sequence[tuple[What, Fault]]  # one for each connection, until there are no more
    stack: str = ""  # that server and edge have their connections by
    errors: list[ServerError] = field(default_factory=list)  # told to whoever asked
    connections: int = 0

    @property
    def moment(self) -> Moment | None:
        """Of a named case."""
        return self.events[0][1].moment if self.events else None

    async def run(self) -> list[list[int]]:
        """The texts of the answers. Asserts that nothing is left of them on either side."""
        options: dict[str, Any] = {"drain_s": 0.05, "stack": self.stack}
        if self.moment is Moment.CREDIT:  # two edges and one place: each waits for the other
            options |= {"credits": "drr", "max_batch": 1}
        self.rig, self._restarts = Rig(self.model, **options), list[asyncio.Task[None]]()
        await self.rig.start()
        if self.moment is Moment.CREDIT:  # one place it is, however long the edges draft
            self.rig.server.pipeline._place = lambda request, now_s: Place(step=1, steps=1, batch=1)
        faults = [fault for _, fault in self.events]
        # an edge foresees more in one round than in another, on any machine
        shape = Shape(jitter_s=0.05) if self.moment is Moment.HIT else None
        self._proxy = Proxy(faults, shape, self._on_fault)
        async with self._proxy.before("127.0.0.1", self.rig.port):
            async with self._rival() if self.moment is Moment.CREDIT else nullcontext():
                texts = await self._answers()
            await asyncio.gather(*self._restarts)
            if not {fault.kind for fault in faults} & {Kind.HALF_OPEN, Kind.ONE_WAY}:
                await until(lambda: not self.rig.server.door.peers())
        self.connections = self._proxy.connections
        await until(self.rig.holds_nothing)
        await self.rig.kill()
        self.rig.give_port_back()
        await no_other_tasks()
        return texts

    async def _answers(self) -> list[list[int]]:
        self._edge = self._new_edge()
        texts = [await self._answer(sampling) for sampling in SAMPLINGS]
        for sampling, text in cycle(zip(SAMPLINGS, texts, strict=True)):
            if len(self._proxy.struck) == len(self.events):
                break
            assert await self._answer(sampling) == text
        if self.events:
            # What struck in an answer's last rounds may be noticed by the next answer alone.
            await asyncio.gather(*self._restarts)
            assert await self._answer(SAMPLINGS[0]) == texts[0]
        await self._edge.close()
        return texts

    def _new_edge(self) -> Edge:
        file = self.folder / "answer.json"
        return Edge(self._proxy.address, self.rig, self.drafter, file, self.stack)

    @asynccontextmanager
    async def _rival(self) -> AsyncIterator[None]:
        """Another edge, on a good link, that is always waiting for the one place."""
        address = ("127.0.0.1", self.rig.port)
        edge = Edge(address, self.rig, self.drafter, self.folder / "rival.json")
        see = Seer(self._proxy, moment=None)

        async def ask_for_ever() -> None:
            while True:
                await edge.ask(Transcript([9, 8, 7], Sampling(800)), see)

        asking = asyncio.ensure_future(ask_for_ever())
        try:
            yield
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await edge.close()

    async def _answer(self, sampling: Sampling) -> list[int]:
        """One answer, asked for again by whoever is left when the edge was stopped in it."""
        see = Seer(self._proxy, self.moment)
        while True:
            answer = self._edge.saved(sampling)
            self._asking = asyncio.ensure_future(self._edge.ask(answer, see))
            try:
                text = await self._asking
                see(Moment.BETWEEN)
                return text
            except asyncio.CancelledError:
                await self._after_a_stop()
            except ServerError as error:
                self.errors.append(error)  # told: nothing is pretended
                self._edge.file.unlink(missing_ok=True)

    async def _after_a_stop(self) -> None:
        if self._stopped_by is What.EDGE_KILLED:
            await self._edge.close()  # its link is dead already
            self._edge = self._new_edge()
        else:
            self._edge.file.unlink(missing_ok=True)

    def _on_fault(self, fault: Fault) -> None:
        match next(what for what, known in self.events if known is fault):
            case What.SERVER_KILLED:
                self._restart(self.rig.kill())
            case What.SERVER_DRAINED:
                self._restart(self.rig.drain())
            case (What.EDGE_CANCELLED | What.EDGE_KILLED) as stop:
                self._stop(stop)

    def _restart(self, ending: Coroutine[None, None, None]) -> None:
        async def restart() -> None:
            await ending
            await self.rig.start()

        self._restarts.append(asyncio.ensure_future(restart()))

    def _stop(self, stop: What) -> None:
        self._stopped_by = stop
        link = self._edge.uplink._link
        if stop is What.EDGE_KILLED and link is not None:
            link._peer._transport.abort()
        self._asking.cancel()


async def no_other_tasks() -> None:
    """Those that were cancelled may have to be run once more; nothing else goes on."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, pending = await asyncio.wait(others, timeout=60)
        assert not pending, f"left behind: {pending}"


def scenario(what: What, moment: Moment) -> list[tuple[What, Fault]]:
    """A named case."""
    return [(what, replace(fault_of(what), moment=moment))]


def schedule(seed: int) -> list[tuple[What, Fault]]:
    """One to four random faults, each on the connection after the last one's.

    All but the last break the connection, else the next one would never come.
    """
    rng = random.Random(seed)
    breaking = [What.CUT, What.RESET, What.SERVER_KILLED, What.SERVER_DRAINED, What.EDGE_KILLED]
    mild = [What.DELAY, What.JITTER, What.THROTTLE, What.SLICE, What.STALL, What.DEAF_EDGE]
    whats = [rng.choice(breaking) for _ in range(rng.randint(0, 3))]
    whats.append(rng.choice(breaking + mild))
    events = []
    for what in whats:
        up = what is not What.DEAF_EDGE and rng.random() < 0.5
        events.append((what, replace(fault_of(what), up=up, at_bytes=rng.randint(1, 250))))
    return events


def fault_of(what: What) -> Fault:
    """What the proxy does; it only tells of what is no business of the link."""
    return LINK_FAULTS.get(what, Fault(Kind.TELL, True))
