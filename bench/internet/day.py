"""A day, tick by tick: sessions come, the router sends them, answers go on at their replica's pace.

Exact are which replica the router chooses for every session, every move after a failure or a drain,
and every turn of every chat. An answer's pace is its replica's curve at the number of answers there
(`replica.py`); that prompts have to be read is left out of it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.internet.prefixes import Prefixes
from bench.internet.replica import Curve
from bench.internet.world import DAY_S, HOUR_S, REGIONS, World
from runtime.config import ReplicaAddress
from runtime.server.router import Replica, Router

NOWHERE = -1
HOURS = 24


@dataclass
class Kept:
    """What is written down, by hour [24] where nothing else is said.

    answers   [most + 1] seconds that replicas spent with so many answers at once
    seconds, tokens   of each edge: of its answers while they ran
    """

    world: World
    active: np.ndarray = field(default_factory=lambda: np.zeros(HOURS))  # answers x seconds
    waited: np.ndarray = field(default_factory=lambda: np.zeros(HOURS))  # the same of who waits
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(HOURS))
    online: np.ndarray = field(default_factory=lambda: np.zeros(HOURS))
    skew: np.ndarray = field(default_factory=lambda: np.zeros(HOURS))  # fullest over mean, largest
    sessions: int = 0
    ended: int = 0  # sessions
    turns: int = 0
    answered: int = 0  # turns
    moved: int = 0  # edges, by failures and drains
    cut: int = 0  # answers among these, which went on elsewhere
    failures: int = 0
    drains: int = 0

    def __post_init__(self) -> None:
        self.answers = np.zeros(self.world.most_active + 1)
        self.edge_seconds = np.zeros(self.world.edges)
        self.edge_tokens = np.zeros(self.world.edges)


class RoundRobin:
    """What the router is compared with: each session to the next replica that is ready."""

    def __init__(self, replicas: Sequence[Replica]):
        self.replicas = replicas
        self._next = 0

    def choose(self, key: str) -> Replica | None:
        for _ in self.replicas:
            self._next = (self._next + 1) % len(self.replicas)
            if not self.replicas[self._next].unready:
                self.replicas[self._next].sent += 1
                return self.replicas[self._next]
        return None


class Day:
    """Edges, replicas and what they are about. `sampled` replicas have their prefix caches."""

    def __init__(
        self, world: World, curve: Curve, seed: int, sampled: int = 1, round_robin: bool = False
    ):
        self.world, self.curve = world, curve
        self.kept = Kept(world)
        self._dice = np.random.default_rng(seed)
        names = (f"replica-{number}.example:8400" for number in range(world.replicas))
        router = Router([ReplicaAddress.parse(name) for name in names])
        self.replicas = router.replicas
        self._number = {replica: number for number, replica in enumerate(self.replicas)}
        self._route: Callable[[str], Replica | None] = (
            RoundRobin(self.replicas).choose if round_robin else router.choose
        )
        pages = world.kv_tokens // world.page_tokens
        self.prefixes = [Prefixes(pages, world.page_tokens) for _ in range(sampled)]
        shares = [region.share for region in REGIONS]
        self._region = self._dice.choice(len(REGIONS), world.edges, p=shares).astype(np.int8)
        self._edges_of = [np.flatnonzero(self._region == n) for n in range(len(REGIONS))]
        self._replica = np.full(world.edges, NOWHERE, np.int16)
        self._turns = np.zeros(world.edges, np.int16)  # left, of its session
        self._chat = np.zeros(world.edges, np.int32)
        self._history = np.zeros(world.edges, np.int32)  # tokens of its chat
        self._due: dict[int, list[np.ndarray]] = defaultdict(list)  # turns by tick
        self._waiting = np.zeros(0, np.int64)  # edges, first come first served
        self._active = np.zeros(0, np.int64)
        self._left = np.zeros(world.edges)  # tokens of its answer to come
        self._back: dict[int, list[int]] = defaultdict(list)  # replicas that are ready, by tick
        self._upgraded = 0

    def run(self, seconds: float = DAY_S, told: Callable[[float], None] = lambda _: None) -> Kept:
        """Live through so many seconds; `told` hears the time each hour."""
        self._tell_router()
        for tick in range(int(seconds / self.world.tick_s)):
            now_s = tick * self.world.tick_s
            if now_s % HOUR_S == 0:
                told(now_s)
            self._replicas_come_and_go(tick)
            self._sessions_begin(now_s, tick)
            self._turns_begin(tick)
            self._admit()
            self._go_on(tick)
            self._tell_router()
            self._write_down(now_s)
        return self.kept

    def check(self) -> None:
        """Recount: nobody is lost, and nobody is in two places."""
        kept, thinking = self.kept, sum(len(ids) for due in self._due.values() for ids in due)
        assert kept.sessions == kept.ended + int((self._replica != NOWHERE).sum())
        assert kept.turns == kept.answered + len(self._active) + len(self._waiting)
        assert kept.sessions - kept.ended == thinking + len(self._active) + len(self._waiting)
        for prefixes in self.prefixes:
            prefixes.check()

    def _replicas_come_and_go(self, tick: int) -> None:
        world = self.world
        for number in self._back.pop(tick, []):
            self.replicas[number].told("", 0)
        failing = self._dice.random(world.replicas) < world.tick_s / world.fails_after_s
        for number in np.flatnonzero(failing):
            self.kept.failures += self._goes_down(int(number), tick, world.down_s)
        due = int(tick * world.tick_s / world.upgraded_every_s)
        if due > self._upgraded and due <= world.replicas:
            self._upgraded = due
            self.kept.drains += self._goes_down(due - 1, tick, world.upgrade_s)

    def _goes_down(self, number: int, tick: int, for_s: float) -> bool:
        """Its edges are sent to others, and their answers go on there. False if it is down."""
        if self.replicas[number].unready:
            return False
        self.replicas[number].told("it is down", 0)
        self._back[tick + max(int(for_s / self.world.tick_s), 1)].append(number)
        if number < len(self.prefixes):
            self.prefixes[number].forget()
        edges = np.flatnonzero(self._replica == number)
        self.kept.moved += len(edges)
        at_work = self._active[self._replica[self._active] == number]
        self.kept.cut += len(at_work)
        self._connect(edges)
        for edge in at_work[self._replica[at_work] < len(self.prefixes)].tolist():
            self._find_prefix(edge)
        return True

    def _tell_router(self) -> None:
        connected = np.bincount(self._replica[self._replica >= 0], minlength=self.world.replicas)
        for replica, edges in zip(self.replicas, connected.tolist(), strict=True):
            if replica.unready != "it is down":
                replica.told("", edges)

    def _sessions_begin(self, now_s: float, tick: int) -> None:
        for number, region in enumerate(REGIONS):
            count = self._dice.poisson(self.world.sessions_per_s(region, now_s) * self.world.tick_s)
            edges = np.unique(self._dice.choice(self._edges_of[number], count))
            edges = edges[self._replica[edges] == NOWHERE]
            anew = (self._dice.random(len(edges)) >= self.world.goes_on).astype(np.int32)
            self._chat[edges] += anew
            self._history[edges] *= 1 - anew
            self._turns[edges] = self._dice.geometric(1 / self.world.turns, len(edges))
            self.kept.sessions += len(edges)
            self._connect(edges)
            self._due[tick].append(edges)

    def _connect(self, edges: np.ndarray) -> None:
        for edge in edges.tolist():
            replica = self._route(str(edge))
            assert replica is not None, "all replicas are down"
            self._replica[edge] = self._number[replica]

    def _turns_begin(self, tick: int) -> None:
        due = self._due.pop(tick, [])
        if due:
            edges = np.concatenate(due)
            self.kept.turns += len(edges)
            self._waiting = np.concatenate([self._waiting, edges])

    def _admit(self) -> None:
        """Who waits begins, first come first served, where the replica has a place."""
        if not len(self._waiting):
            return
        there = self._replica[self._waiting]
        taken = np.bincount(self._replica[self._active], minlength=self.world.replicas)
        order = np.argsort(there, kind="stable")
        place = np.empty(len(there), np.int64)
        first = np.searchsorted(there[order], there[order])
        place[order] = np.arange(len(there)) - first
        admitted = place < self.world.most_active - taken[there]
        edges, self._waiting = self._waiting[admitted], self._waiting[~admitted]
        self._left[edges] = self._dice.geometric(1 / self.world.answer_tokens, len(edges))
        prompts = self._dice.geometric(1 / self.world.prompt_tokens, len(edges))
        needed = self._history[edges] + prompts + self._left[edges]
        anew = needed > self.world.most_context
        self._chat[edges] += anew
        self._history[edges] = np.where(anew, 0, self._history[edges])
        self._active = np.concatenate([self._active, edges])
        seen = self._replica[edges] < len(self.prefixes)
        for edge, prompt in zip(edges[seen].tolist(), prompts[seen].tolist(), strict=True):
            self._find_prefix(edge, prompt)
        self._history[edges] += (prompts + self._left[edges]).astype(np.int32)

    def _find_prefix(self, edge: int, prompt: int | None = None) -> None:
        """Its text is looked for where it is now: a turn's, or all of one that was cut."""
        at = int(self._replica[edge])
        if at < len(self.prefixes):
            history, answer = int(self._history[edge]), int(np.ceil(self._left[edge]))
            if prompt is None:
                history, prompt = 0, history - answer
            if 0 < history + prompt + answer <= 2 * self.world.most_context:
                chat = int(self._chat[edge])
                self.prefixes[at].begin(edge, chat, history, max(prompt, 1), answer)

    def _go_on(self, tick: int) -> None:
        """Answers get their tokens; who has the last thinks, or leaves."""
        world, edges = self.world, self._active
        there = self._replica[edges]
        counts = np.bincount(there, minlength=world.replicas)
        # who was moved to a full replica shares the places there with the others
        crowd = np.minimum(world.most_active / np.maximum(counts[there], 1), 1.0)
        rates = self.curve.rate(counts[there], self._region[edges]) * crowd
        spent = np.minimum(self._left[edges] / rates, world.tick_s)
        given = np.minimum(rates * world.tick_s, self._left[edges])
        self.kept.edge_seconds[edges] += spent
        self.kept.edge_tokens[edges] += given
        hour = int(tick * world.tick_s / HOUR_S) % HOURS
        self.kept.tokens[hour] += given.sum()
        self.kept.active[hour] += len(edges) * world.tick_s
        self.kept.waited[hour] += len(self._waiting) * world.tick_s
        full = np.minimum(counts, world.most_active)
        self.kept.answers += np.bincount(full, minlength=world.most_active + 1) * world.tick_s
        self._left[edges] -= given
        over = self._left[edges] < 1e-6
        done, self._active = edges[over], edges[~over]
        self.kept.answered += len(done)
        for edge in done[self._replica[done] < len(self.prefixes)].tolist():
            self.prefixes[self._replica[edge]].end(edge)
        self._turns[done] -= 1
        leaving = done[self._turns[done] <= 0]
        self.kept.ended += len(leaving)
        self._replica[leaving] = NOWHERE
        thinking = done[self._turns[done] > 0]
        waits = self._dice.exponential(world.think_s / world.tick_s, len(thinking)).astype(int) + 1
        for wait in np.unique(waits):
            self._due[tick + int(wait)].append(thinking[waits == wait])

    def _write_down(self, now_s: float) -> None:
        hour = int(now_s / HOUR_S) % HOURS
        edges = np.array([replica.edges for replica in self.replicas if not replica.unready])
        self.kept.online[hour] += edges.sum() * self.world.tick_s / HOUR_S
        if edges.mean() >= 32:  # the bound is of a mean that is not tiny
            self.kept.skew[hour] = max(self.kept.skew[hour], edges.max() / edges.mean())
