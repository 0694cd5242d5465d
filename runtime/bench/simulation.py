"""Simulated edges, links and accelerator around the server's own pipeline and credit objects.

One heap of events, no model and no waiting: a draft is a number of nodes, whether they are accepted
is drawn. Only the objects under test decide; nothing here knows how they do it.

A tree of n nodes has levels of equal width w, as many as is best and at most one for each pass.
Each level goes on with the target's text with probability 1 - (1 - quality) / sqrt(w): at quality
0.6, 32 nodes have 2.8 accepted in four levels and 3.3 in seven. Proactive drafting is not
simulated: an edge begins with the verdict.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from runtime.edge.draft.pace import Pace, Slot
from runtime.server.policy.credits import Credits
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Mean
from runtime.server.policy.pipeline import Grant, Pipeline
from runtime.server.request import NO_NODES, Request
from runtime.server.schedule.choose import cuts
from runtime.server.verify.warm_up import ROWS as WARM_UP_ROWS
from runtime.tree import Tree
from runtime.wire.messages import Offer, Open, Turn

NODES_PER_PASS = 8
# What a lost message waits besides a round trip until TCP sends it again: Linux' least, RFC 6298.
RESENT_S = 0.2


@dataclass(frozen=True)
class Device:
    """One edge: its link, its draft model, and when it is there."""

    rtt_s: float
    pass_s: float = 0.011
    quality: float = 0.6
    jitter: float = 0.0  # each way takes up to this share longer
    loss: float = 0.0  # chance that a message is lost and sent again, once
    max_nodes: int = 32
    max_passes: int = 12
    user: str = ""
    joins_s: float = 0.0


@dataclass(frozen=True)
class Accelerator:
    """Time of a step by its rows: straight lines between points, the last one goes on."""

    points: tuple[tuple[int, float], ...]  # rows and seconds
    max_batch: int
    max_step_nodes: int = 1 << 20
    noise: float = 0.0  # standard deviation of a step, as a share of it

    def step_s(self, rows: int) -> float:
        """Seconds of a step without noise."""
        if len(self.points) == 1:
            return self.points[0][1]
        at = next((i for i, (end, _) in enumerate(self.points) if rows <= end), len(self.points))
        (x0, y0), (x1, y1) = self.points[max(at - 1, 0) :][:2] if at < len(self.points) else (
            self.points[-2], self.points[-1]
        )  # fmt: skip
        return y0 + (y1 - y0) / (x1 - x0) * max(rows - x0, 0)


@dataclass
class Trip:
    """The state of one edge, and what is recorded of it; bench/credits.py lets it draft for real.

    A draft is a number of nodes and of the passes they took. One that `makes_offers` has a text.
    """

    device: Device
    received_s: float = 0.0  # when the last verdict reached the edge
    nodes: int = 0
    passes: int = 0
    sent_s: float = 0.0
    used_s: float = 0.0  # when the server could use the last draft
    queued_s: float = 0.0
    plain: bool = True
    makes_offers: bool = False
    at_once: bool = False  # it has its offers without passes, and sends what nobody asked for
    pace: Pace = field(default_factory=Pace)
    verdicts: list[tuple[float, int]] = field(default_factory=list)  # seconds, tokens

    @property
    def tokens(self) -> int:
        """All tokens so far."""
        return sum(tokens for _, tokens in self.verdicts)

    def answered(self, accepted: int, step_s: float, now_s: float) -> None:
        """A verdict accepts so many nodes; it leaves now, and a step of the server takes `step_s`.

        When it reaches the edge is in `received_s` already.
        """
        self.verdicts.append((now_s, accepted + 1))
        self.pace.saw_step(step_s)

    def text(self, last: int, tokens: int) -> list[int]:
        """So many tokens of the text behind the token `last`."""
        return [last] * tokens

    def offer(self) -> Offer | None:
        """What it offers after a verdict that left it the choice, sent at `sent_s`."""
        raise NotImplementedError("this edge makes no offers")

    def take(self, tree: Tree) -> None:
        """So much of an offer is in the next step."""
        self.nodes = len(tree)

    def draft(self, grant: Grant, granted_s: float) -> None:
        """Draft from the verdict on; after `granted_s` while the edge's own rule says so."""
        device, before_s = self.device, granted_s - self.received_s
        if self.used_s:
            self.pace.saw_wait(max(self.received_s - self.used_s, 0.0))
        self.pace.pass_s = device.pass_s
        passes = max(1, min(int(before_s / device.pass_s), device.max_passes))
        while passes < device.max_passes and self._goes_on(grant, passes, before_s):
            passes += 1
        self.passes = passes
        self.nodes = min(grant.max_nodes, NODES_PER_PASS * passes)
        self.sent_s = max(granted_s, self.received_s + passes * device.pass_s)
        self.used_s = max(self.sent_s, granted_s + grant.free_s)

    def _goes_on(self, grant: Grant, passes: int, before_s: float) -> bool:
        tokens, more = (self._tokens(grant, count) for count in (passes, passes + 1))
        elapsed_s = passes * self.device.pass_s - before_s
        slot = Slot(grant.free_s, grant.late_s)
        return self.pace.is_worth_a_pass(tokens, more - tokens, elapsed_s, slot)

    def _tokens(self, grant: Grant, passes: int) -> float:
        """Of a verdict, expected."""
        nodes = min(grant.max_nodes, NODES_PER_PASS * passes)
        return 1 + expected_accepted(nodes, passes, self.device.quality)

    def luck(self, quality: float, rng: random.Random) -> list[int]:
        """Ranks of the nodes of its draft that a verdict accepts, one of each level.

        Of a level's w nodes the first k have one on the text at chance 1 - (1 - quality) / sqrt(k).
        """
        levels, chance = tree_shape(self.nodes, self.passes, quality)
        ranks: list[int] = []
        for level in range(levels):
            missed = 1 - rng.random()
            if missed <= 1 - chance:
                break
            place = math.ceil(((1 - quality) / missed) ** 2)
            ranks.append(best_first(self.nodes, levels, quality)[level, place])
        return ranks


@dataclass
class Record:
    """What happened after the warm-up."""

    trips: list[Trip]
    elapsed_s: float
    busy_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)  # how long each took
    tokens: int = 0
    ages_s: list[float] = field(default_factory=list)  # of trees, from leaving the edge to verified
    longest_queue: int = 0
    largest_window: float = 0.0
    trees_by_user: dict[str, list[float]] = field(default_factory=dict)  # times of verification


@lru_cache(maxsize=1 << 16)
def tree_shape(nodes: int, passes: int, quality: float) -> tuple[int, float]:
    """Levels of the best tree of so many nodes and passes, and the chance of each level."""
    chances = {
        levels: 1 - (1 - quality) / math.sqrt(nodes / levels)
        for levels in range(1, min(passes, nodes) + 1)
    }
    return max(chances.items(), key=lambda item: _geometric(item[0], item[1]), default=(0, 0.0))


@lru_cache(maxsize=1 << 12)
def best_first(nodes: int, levels: int, quality: float) -> dict[tuple[int, int], int]:
    """The rank by its chance, from 1, of the node at each level and place in it."""
    width = nodes / levels
    level_chance = 1 - (1 - quality) / math.sqrt(width)

    def chance(node: tuple[int, int]) -> float:
        level, place = node
        before = 1 - (1 - quality) / math.sqrt(place - 1) if place > 1 else 0.0
        return level_chance**level * (1 - (1 - quality) / math.sqrt(place) - before)

    tree = [(level, place) for level in range(levels) for place in range(1, math.ceil(width) + 1)]
    order = sorted(tree, key=chance, reverse=True)
    return {node: min(rank, nodes) for rank, node in enumerate(order, 1)}


def expected_accepted(nodes: int, passes: int, quality: float) -> float:
    """Nodes accepted of a tree, on average."""
    return _geometric(*tree_shape(nodes, passes, quality))


def _geometric(levels: int, chance: float) -> float:
    return sum(chance**level for level in range(1, levels + 1))


@lru_cache(maxsize=256)
def chain(nodes: int) -> Tree:
    """The server's policies count the nodes of a draft and never look at them."""
    return Tree((0,) * nodes, tuple(range(nodes)))


def _request(number: int, trip: Trip) -> Request:
    """An endless one of a prompt of one token, as the server knows it."""
    params, device = Open(1, 0, 0.0, 1.0, 0.0, 0, 1, 1, ()), trip.device
    edge = EdgeProfile.of_offers() if trip.makes_offers else EdgeProfile()
    edge.max_nodes, edge.rtt_s = device.max_nodes, Mean(device.rtt_s)
    prompt = trip.text(-1, 1)
    return Request(number, params, 1 << 62, prompt, user=device.user, admitted=True, edge=edge)


class Simulation:
    """Runs one server with its edges; `quality_at` may change an edge's luck over time.

    `trip` makes the state of an edge, which says how it drafts.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        devices: Sequence[Device],
        credits: Credits,
        pipelined: bool = True,
        seed: int = 0,
        quality_at: Callable[[Device, float], float] = lambda device, _: device.quality,
        trip: Callable[[Device], Trip] = Trip,
        objective_s: float = math.inf,
    ):
        self.accelerator = accelerator
        self.pipeline = Pipeline(
            *(accelerator.max_batch, accelerator.max_step_nodes, credits, pipelined),
            objective_s=objective_s,
        )
        self.pipeline.load.cost.learn((rows, accelerator.step_s(rows)) for rows in WARM_UP_ROWS)
        self.trips = [trip(device) for device in devices]
        self._rng = random.Random(seed)
        self._quality_at = quality_at
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self.requests = [_request(number, trip) for number, trip in enumerate(self.trips)]
        self._queue: list[tuple[float, int]] = []  # arrival and number of the request
        self._trees_queued = 0
        self._busy = False
        self._now_s = 0.0

    def run(self, until_s: float, warm_up_s: float = 0.0) -> Record:
        """Let `until_s` seconds pass, and report what came after the warm-up."""
        self._warm_up_s = warm_up_s
        self.record = Record(self.trips, until_s - warm_up_s)
        for number, trip in enumerate(self.trips):
            self._at(trip.device.joins_s, self._join, number)
        while self._events and self._events[0][0] <= until_s:
            self._now_s, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        return self.record

    def _at(self, time_s: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), action, arguments))

    def _one_way_s(self, device: Device) -> float:
        way_s = device.rtt_s / 2 * (1 + device.jitter * self._rng.random())
        lost = device.loss > 0 and self._rng.random() < device.loss
        return way_s + RESENT_S + device.rtt_s if lost else way_s

    def _join(self, number: int) -> None:
        self.pipeline.opened(self.requests[number], self._now_s)
        self._enqueue(number)

    def _draft(self, number: int, draft_s: float) -> None:
        trip = self.trips[number]
        request = self.requests[number]
        request.line_up(chain(trip.nodes), self._now_s)
        self.pipeline.draft_arrived(request, draft_s, self._now_s)
        self._trees_queued += 1
        self.record.longest_queue = max(self.record.longest_queue, self._trees_queued)
        self._enqueue(number)

    def _enqueue(self, number: int) -> None:
        self.trips[number].queued_s = self._now_s
        heapq.heappush(self._queue, (self._now_s, number))
        self._start_step()

    def _start_step(self) -> None:
        """Take the oldest that fit, as the scheduler does."""
        if self._busy or not self._queue:
            return
        batch: list[int] = []
        rows, limits = 0, (self.accelerator.max_batch, self.accelerator.max_step_nodes)
        waiting = [self.requests[number] for _, number in sorted(self._queue)]
        for request, nodes in cuts(waiting, *limits):
            request.cut(nodes)
            assert request.draft is not None, "it has a draft"
            self.trips[request.key].take(request.draft)
        while self._queue and len(batch) < self.accelerator.max_batch:
            needed = 1 + self.trips[self._queue[0][1]].nodes
            if rows + needed > self.accelerator.max_step_nodes:
                break
            batch.append(heapq.heappop(self._queue)[1])
            rows += needed
        self._trees_queued -= sum(not self.trips[number].plain for number in batch)
        self._busy = True
        requests = [self.requests[number] for number in batch]
        for request in requests:
            request.enter_step(0, verify=True)
        self.pipeline.step_started(requests, rows, 0, self._now_s)
        self._send_credits()
        noise = max(self._rng.gauss(1, self.accelerator.noise), 0.5)
        step_s = self.accelerator.step_s(rows) * noise
        self._at(self._now_s + step_s, self._end_step, batch, rows, step_s)

    def _end_step(self, batch: list[int], rows: int, step_s: float) -> None:
        ranks = [self._accepted(self.trips[number]) for number in batch]
        tokens = sum(map(len, ranks)) + len(batch)
        self.pipeline.step_ended(len(batch), rows, 0, tokens, step_s, self._now_s)
        self.record.largest_window = max(
            self.record.largest_window, self.pipeline.credits.window.size
        )
        self._busy = False
        if self._now_s > self._warm_up_s:
            self.record.busy_s += min(step_s, self._now_s - self._warm_up_s)
            self.record.steps_s.append(step_s)
            self.record.tokens += tokens
        for number, accepted in zip(batch, ranks, strict=True):
            self._verdict(number, accepted, step_s)
        self._send_credits()
        self._start_step()

    def _accepted(self, trip: Trip) -> list[int]:
        return trip.luck(self._quality_at(trip.device, self._now_s), self._rng)

    def _verdict(self, number: int, ranks: Sequence[int], step_s: float) -> None:
        trip = self.trips[number]
        trip.received_s = self._now_s + self._one_way_s(trip.device)
        trip.answered(len(ranks), step_s, self._now_s)
        if trip.nodes and self._now_s > self._warm_up_s:
            if not trip.plain:
                self.record.ages_s.append(self._now_s - trip.sent_s)
            self.record.trees_by_user.setdefault(trip.device.user, []).append(self._now_s)
        request = self.requests[number]
        request.leave_step()
        *accepted, bonus = trip.text(request.context[-1], len(ranks) + 1)
        request.advance(accepted, bonus)
        grant = self.pipeline.after_verdict(request, ranks, self._now_s)
        trip.plain = grant.turn is Turn.SERVER
        trip.nodes = trip.passes = 0
        if trip.plain:
            self._go_on(number, grant)
        elif grant.turn is Turn.EDGE:
            self._edge_drafts(number, grant, trip.received_s)

    def _go_on(self, number: int, grant: Grant) -> None:
        """It can be in the next step, which begins when all verdicts are out."""
        trip, request = self.trips[number], self.requests[number]
        is_liked = grant.max_nodes > 0 or (trip.makes_offers and trip.at_once)
        if is_liked and (offer := trip.offer()) is not None:
            self._at(trip.sent_s + self._one_way_s(trip.device), self._offered, number, offer)
        tree = NO_NODES
        if request.offer is not None:
            tree = request.take_along(self.pipeline.nodes_to_take(request, self._now_s))
        trip.take(tree)
        request.edge.nodes = len(tree)
        request.line_up(tree, self._now_s)
        trip.queued_s = self._now_s
        heapq.heappush(self._queue, (self._now_s, number))

    def _offered(self, number: int, offer: Offer) -> None:
        request = self.requests[number]
        request.take_offer(offer)
        self.pipeline.offer_came(request, offer.base, self._now_s)
        request.take_along(self.pipeline.nodes_to_take(request, self._now_s))

    def _send_credits(self) -> None:
        for request, grant in self.pipeline.credits_due(self._now_s):
            trip = self.trips[request.key]
            reaches_s = self._now_s + self._one_way_s(trip.device)
            self._edge_drafts(request.key, grant, max(reaches_s, trip.received_s))

    def _edge_drafts(self, number: int, grant: Grant, granted_s: float) -> None:
        trip = self.trips[number]
        trip.draft(grant, granted_s)
        arrives_s = trip.sent_s + self._one_way_s(trip.device)
        self._at(arrives_s, self._draft, number, trip.sent_s - granted_s)
