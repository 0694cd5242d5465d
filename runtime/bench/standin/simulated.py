"""Stand-in drafts in simulated time: the product's own trees, grown, sent and followed by events.

An edge's passes are those of `runtime.edge.draft.speculation`, over the agreement of a row of the
paper; that each takes `pass_s` is reckoned, not waited for. When to go on is the edge's own rule
(`pace.py`), as in `runtime.edge.loop`, which does the same with a clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from runtime.bench.simulation import Device, Trip
from runtime.bench.standin.agreement import TOKENS
from runtime.bench.standin.calibration import BEAMS, WIDTH, agreement
from runtime.bench.standin.drafter import StandInDrafter
from runtime.bench.standin.gain import walk
from runtime.edge.draft.offering import Offering, ahead, due_s
from runtime.edge.draft.pace import Slot
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.server.policy.pipeline import Grant
from runtime.tree import ROOT, Tree
from runtime.wire.messages import MAX_NODES, Offer

ENDLESS = 1 << 40  # tokens of a text that does not end within a simulation
AHEAD = MAX_NODES + 1  # tokens of the text that a walk may need


@lru_cache(maxsize=32)
def drafter(row: str) -> StandInDrafter:
    """Of a row of the paper, by name; its passes take no time of their own."""
    return StandInDrafter(agreement(row), 0.0, [])


@dataclass
class StandInTrip(Trip):
    """The state of an edge that drafts for the text from `first` on; times as in `Trip`."""

    row: str = ""
    first: int = 0
    proactive: Proactive = Proactive.MULTI

    def __post_init__(self) -> None:
        device = self.device
        shape = TreeShape(device.max_nodes, BEAMS, device.max_passes, WIDTH)
        prompt, noise = [(self.first - 1) % TOKENS], Noise()
        self._drafter = drafter(self.row)
        self.speculation = Speculation(prompt, ENDLESS, shape, self.proactive, noise, TOKENS)
        self.pace.pass_s = device.pass_s
        self._offering, self._taken = Offering(at_once=False), Tree()
        self._told_s: float | None = None  # when a verdict came after which the server decodes on
        self._free_s = 0.0  # when the device is done with its last pass
        self._node = ROOT  # where the last walk ended

    def luck(self, quality: float, rng: Random) -> list[int]:
        """Of what was sent, what follows the text, which leaves no choice."""
        sent = self._taken if self.plain else self.speculation.sent
        self._node, _ = walk(sent, self.text(self.speculation.context[-1], AHEAD))
        return sent.ranks(sent.path(self._node))

    def text(self, last: int, tokens: int) -> list[int]:
        """The text is one circle through all tokens, which leaves no choice."""
        if last < 0:
            return self.speculation.context[-1:]
        return [(last + 1 + i) % TOKENS for i in range(tokens)]

    def answered(self, accepted: int, step_s: float, now_s: float) -> None:
        super().answered(accepted, step_s, now_s)
        *path, bonus = self.text(self.speculation.context[-1], accepted + 1)
        if self.plain:
            self._deepen(self.received_s)
            self._free_s = max(self._free_s, self.received_s)
            if self._told_s is not None:
                self.pace.saw_round(self.received_s - self._told_s)
            self._told_s = self.received_s
            for token in (*path, bonus):
                self.speculation.commit(0, token)
            return
        self._told_s = None
        self._draft_ahead()
        if self.nodes:
            self.pace.saw_wait(max(self.received_s - self.used_s, 0.0))
        self.speculation.commit(self._node, bonus)

    def take(self, tree: Tree) -> None:
        super().take(tree)
        self._taken = tree

    def offer(self) -> Offer | None:
        """As `Exchange.offer`."""
        speculation, told_s, round_s = self.speculation, self.received_s, self.pace.round_s
        while speculation.frontier(speculation.shape.max_budget) == [ROOT]:
            self._pass([ROOT])
        steps = ahead(self._free_s - told_s + self.device.rtt_s, round_s)
        self._deepen(told_s + due_s(steps, self.device.rtt_s, round_s))
        self.sent_s = self._free_s
        tree = self._offering.next(speculation, steps)
        if tree is None:
            return None
        return Offer(1, len(speculation.context), tree.tokens, tree.parents)

    def _deepen(self, until_s: float) -> None:
        """Passes that end by then."""
        while self._free_s + self.device.pass_s <= until_s:
            frontier = self.speculation.frontier_to_offer()
            if not frontier:
                return
            self._pass(frontier)

    def draft(self, grant: Grant, granted_s: float) -> None:
        """As `Exchange.draft`: catch up with the text, grow while it pays, send."""
        self.passes = 0
        while self.speculation.frontier(grant.max_nodes) == [ROOT]:
            self._pass([ROOT])
        share = 1.0
        for _ in range(self.speculation.shape.max_beam_len - 1):
            frontier = self.speculation.frontier(grant.max_nodes)
            tokens = self.speculation.expected_tokens
            promise = self.speculation.probability(frontier)
            is_granted = self._free_s >= granted_s
            slot = Slot(grant.free_s, grant.late_s) if is_granted else Slot(math.inf, 0.0)
            elapsed_s = max(self._free_s - granted_s, 0.0)
            if not self.pace.is_worth_a_pass(tokens, share * promise, elapsed_s, slot):
                break
            self._pass(frontier)
            share = (self.speculation.expected_tokens - tokens) / promise
        self.nodes = len(self.speculation.send(grant.max_nodes).tokens)
        self.sent_s = max(granted_s, self._free_s)
        self.used_s = max(self.sent_s, granted_s + grant.free_s)

    def _draft_ahead(self) -> None:
        """From when the draft was sent until its verdict has come, or should have."""
        self._free_s = max(self._free_s, self.sent_s)
        while self._free_s < self.received_s and self._fits_ahead():
            frontier = self.speculation.frontier_ahead()
            if not frontier:
                break
            self._pass(frontier)
        self._free_s = max(self._free_s, self.received_s)

    def _fits_ahead(self) -> bool:
        return not self.nodes or self.pace.fits_ahead(self._free_s - self.used_s)

    def _pass(self, frontier: list[int]) -> None:
        self._drafter.run([Pass(self.speculation, frontier)])
        self._free_s += self.device.pass_s
        self.passes += 1


def trips(
    rows: list[str],
    proactive: Proactive = Proactive.MULTI,
    start: int = 0,
    offers: bool = True,
) -> Callable[[Device], Trip]:
    """Makes edges: their rows in turn, their texts from places that are spread over the circle.

    `start` moves all of these; with `offers` they make them where the server likes it.
    """
    made = 0

    def trip(device: Device) -> Trip:
        nonlocal made
        made += 1
        row, first = rows[made % len(rows)], (start + made * 787) % TOKENS
        makes_offers = offers and device.max_nodes > 0
        return StandInTrip(
            device, row=row, first=first, proactive=proactive, makes_offers=makes_offers
        )

    return trip
