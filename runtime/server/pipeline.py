"""What an edge is told with its verdict: draft or not, how many nodes, and for how long.

The server must never wait while there is work, and an edge need not hurry while others are
verified: it may draft until just before that step ends, and weighs for itself whether to go on
where the server has nothing else to begin with. So sessions fall into groups by themselves, one
drafting while another is verified. A step takes what has come and waits for nobody.

Pure policy over keys and numbers: knows no model, socket or clock; the time is an argument.
Source: SpecEdge (arXiv:2505.17052) section 4.3, its calibration made continuous.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from runtime.server.credits import HOLD_S, Credits, Place
from runtime.server.estimators import Acceptance, Mean, Rate
from runtime.server.slots import Expected, first_slot
from runtime.server.step_cost import StepCost
from runtime.server.trial import Trial
from runtime.wire.messages import Turn

RTT_S, DRAFT_S = 0.02, 0.05  # of an edge of which nothing is known yet
HURRY = 0.5  # so much of the drafting that is left is enough to be in a step sooner
AT_ONCE_S = 0.002  # takes an edge that has its tree and gets the credit for it


@dataclass(frozen=True)
class Grant:
    """The next move. With Turn.WAIT it says nothing yet but that; the credit's grant does.

    A tree of at most `max_nodes` drafted nodes may be sent. Drafted for `draft_s` seconds it comes
    just before its step: sooner is of no use. For `late_s` longer the server would be idle without
    it, and later the step starts without it.
    """

    turn: Turn
    max_nodes: int = 0
    draft_s: float = 0.0
    late_s: float = 0.0


@dataclass
class Edge:
    """What is known of one session and of the edge behind it."""

    max_nodes: int  # the most it ever drafts
    rtt_s: Mean
    turn: Turn = Turn.SERVER
    verdict_s: float = 0.0  # when its last verdict left
    grant_s: float = 0.0  # when its last verdict or credit left
    due_s: float = 0.0  # when its tree is expected
    nodes: int = 0  # in its last tree
    draft_s: Mean = field(default_factory=lambda: Mean(DRAFT_S, gain=0.25))  # from the verdict on
    sent_nodes: Mean = field(default_factory=lambda: Mean(gain=0.25))
    round_s: Mean = field(default_factory=lambda: Mean(gain=0.25))  # of rounds with a draft
    acceptance: Acceptance = field(default_factory=Acceptance)
    trial: Trial = field(default_factory=Trial)

    def arrived(self, nodes: int, draft_s: float, now_s: float) -> None:
        """A tree has come, after `draft_s` at the edge."""
        self.nodes = nodes
        self.sent_nodes.observe(nodes)
        self.rtt_s.observe(max(now_s - self.grant_s - draft_s, 0.0))
        waited_s = self.grant_s - self.verdict_s
        if waited_s == 0 or draft_s > AT_ONCE_S:  # else it was drafted before the credit came
            self.draft_s.observe(waited_s + draft_s)

    def wanted_s(self, now_s: float) -> float:
        """How much longer it drafts, if it drafts as long as usual."""
        return max(self.draft_s.value - (now_s - self.verdict_s), 0.0)


class Pipeline:
    """Sessions from `opened` to `closed`; the other calls follow the server's loop.

    `pipelined=False` is the paper's ablation: no slots, and every edge drafts what it likes.
    """

    def __init__(
        self, max_batch: int, max_step_nodes: int, credits: Credits, pipelined: bool = True
    ):
        self.cost = StepCost()
        self.credits = credits
        self._max_batch, self._max_step_nodes = max_batch, max_step_nodes
        self._pipelined = pipelined
        self._edges: dict[Hashable, Edge] = {}
        self._plain: set[Hashable] = set()  # decode plainly: can be in every step
        self._queued: set[Hashable] = set()  # have a prompt or a tree that can be in the next step
        self._drafting = Expected()  # may send a tree, or have it on the way
        self._verified: set[Hashable] = set()  # in the last step, and not told their next move yet
        self._free_at_s = 0.0  # when the running step is expected to end
        self._ended_s = 0.0
        self._steps = 0  # that have begun
        self._tokens, self._trees = Rate(), Rate()
        self._tree_rows, self._step_trees, self._step_s = Mean(), Mean(), Mean()
        self._take_stock()

    # --- what happens ---

    def opened(
        self,
        key: Hashable,
        max_nodes: int,
        rtt_s: float | None,
        now_s: float,
        user: Hashable = "",
        weight: float = 1.0,
    ) -> None:
        """A session whose prompt waits to be verified; `max_nodes` 0 is plain decoding for ever."""
        if not self._edges:
            self._ended_s = now_s
        self._edges[key] = Edge(max_nodes, Mean(RTT_S if rtt_s is None else rtt_s))
        self._queued.add(key)
        self.credits.opened(key, user, weight)

    def closed(self, key: Hashable) -> None:
        """A session has ended, in whatever state."""
        del self._edges[key]
        self._verified.discard(key)
        self._plain.discard(key)
        self._queued.discard(key)
        self._drafting.discard(key)
        self.credits.closed(key)

    def draft_arrived(self, key: Hashable, nodes: int, draft_s: float, now_s: float) -> None:
        """A tree of `nodes` drafted nodes has come, sent `draft_s` after the grant was received."""
        edge = self._edges[key]
        edge.arrived(nodes, draft_s, now_s)
        self._drafting.discard(key)
        self._queued.add(key)
        self.credits.window.hold(key, math.inf)

    def stalled(self) -> None:
        """What has come waits for pages that others hold: those must not wait for its credits."""
        for key in self._queued:
            self.credits.window.release(key)

    def step_started(
        self, keys: Iterable[Hashable], rows: int, chunk_rows: int, now_s: float
    ) -> None:
        """A step verifies these sessions, with `rows` rows in trees and `chunk_rows` in prompts."""
        self._verified = set(keys)
        self._queued -= self._verified
        for key in self._verified:
            self.credits.window.release(key)
        self._free_at_s = now_s + self.cost.step_s(rows, chunk_rows)
        self._steps += 1

    def step_ended(
        self, trees: int, rows: int, chunk_rows: int, tokens: int, step_s: float, now_s: float
    ) -> None:
        """That step took `step_s`, verified `trees` trees and gave `tokens`. Verdicts follow."""
        self.cost.observe(rows, chunk_rows, step_s)
        elapsed_s, self._ended_s, self._free_at_s = now_s - self._ended_s, now_s, now_s
        self._tokens.observe(tokens, elapsed_s)
        self._trees.observe(trees, elapsed_s)
        if trees:
            self._step_trees.observe(trees)
            self._tree_rows.observe(rows / trees)
            self._step_s.observe(step_s)
        self._take_stock()
        self.credits.verified(self._trees.per_s)

    # --- what follows ---

    def after_verdict(self, key: Hashable, accepted: int, now_s: float) -> Grant:
        """The next move of a session after a verdict that accepted `accepted` drafted nodes."""
        edge = self._edges[key]
        self._verified.discard(key)
        self._learn(edge, accepted, now_s)
        edge.verdict_s = now_s
        max_nodes = self._stake(edge)
        self._queued.discard(key)
        if max_nodes == 0:
            edge.turn = Turn.SERVER
            self._plain.add(key)
            return Grant(Turn.SERVER)
        edge.turn, edge.nodes = Turn.EDGE, 0
        self._plain.discard(key)
        # Where there is a line, all sessions of this step shall stand in it before anyone is next.
        others_wait = self.credits.wanted
        self.credits.want(key)
        if others_wait or not self._give(now_s):
            return Grant(Turn.WAIT)
        return self._grant(key, max_nodes, now_s)

    def credits_due(self, now_s: float) -> list[tuple[Hashable, Grant]]:
        """Sessions that were told to wait and may send now."""
        keys = self._give(now_s)
        nodes = {key: max(self._stake(self._edges[key]), 1) for key in keys}
        return [(key, self._grant(key, nodes[key], now_s)) for key in keys]

    @property
    def wake_s(self) -> float:
        """When credits may be due although no step ends by then; infinite if never."""
        return self.credits.wake_s

    def _take_stock(self) -> None:
        """Work out once for all verdicts of a step what they need to know of the steps before."""
        by_rows = self._max_step_nodes / max(self._tree_rows.value, 1.0)
        self._batch = max(1, min(self._max_batch, int(by_rows)))  # trees that fit in a step
        # Rows that others have in a step, on average.
        self._other_rows = max(self._step_trees.value - 1, 0.0) * self._tree_rows.value
        self._token_s = self.cost.step_s(self._other_rows + 1)  # of a step for one more token
        # Of more rows than these: how many cost how many tokens each.
        root, per_s = self._other_rows + 1, self._tokens.per_s
        self._prices = [(end - root, row_s * per_s) for end, row_s in self.cost.slopes(root)]

    def _learn(self, edge: Edge, accepted: int, now_s: float) -> None:
        if edge.turn is Turn.SERVER:
            edge.trial.plain()
            return
        round_s = now_s - edge.verdict_s
        edge.round_s.observe(round_s)
        edge.acceptance.observe(edge.nodes, accepted)
        if self.cost.known:
            edge.trial.drafted(accepted + 1, round_s / self._plain_s())

    def _grant(self, key: Hashable, max_nodes: int, now_s: float) -> Grant:
        """Let the session send a tree, and remember when it should come."""
        edge = self._edges[key]
        free_s, late_s = 0.0, math.inf
        if self._pipelined:
            free_s, late_s = self._slot(edge, now_s)
            late_s = min(late_s, max(self._most_draft_s(edge, max_nodes) - free_s, 0.0))
        edge.grant_s = now_s
        edge.due_s = now_s + edge.rtt_s.value + edge.wanted_s(now_s)
        self._drafting.add(key, edge.due_s)
        self.credits.window.hold(key, edge.due_s + HOLD_S)
        return Grant(Turn.EDGE, max_nodes, free_s, late_s)

    def _give(self, now_s: float) -> list[Hashable]:
        """Sessions that get a credit now."""
        return self.credits.give(now_s, lambda key: self._place(key, now_s))

    def _place(self, key: Hashable, now_s: float) -> Place:
        """Where a tree would be verified that is sent as soon as its edge is ready, if told now."""
        edge = self._edges[key]
        arrival_s = now_s + self._travel_s(edge) + HURRY * edge.wanted_s(now_s)
        start_s, step_s = self._next_step_s(now_s, arrival_s), self._step_s.value
        behind = math.ceil((arrival_s - start_s) / step_s) if arrival_s > start_s and step_s else 0
        # Whoever decodes plainly is in every step.
        batch = max(self._batch - len(self._plain), 1)
        return Place(self._steps + 1 + behind, 1 + behind, batch)

    def _next_step_s(self, now_s: float, arrival_s: float) -> float:
        """When the next step begins if a tree comes then: at once, or with the first that comes."""
        if self._queued or self._plain or now_s < self._free_at_s:
            return max(self._free_at_s, now_s)
        return min([arrival_s, *self._drafting.after(now_s)[:1]])

    def _travel_s(self, edge: Edge) -> float:
        """From a grant to a tree for it, with some reserve."""
        return edge.rtt_s.value + 2 * edge.rtt_s.deviation + self.cost.deviation_s

    def _slot(self, edge: Edge, now_s: float) -> tuple[float, float]:
        """How long it should draft to be in its step, and how much longer that step can wait."""
        travel_s = self._travel_s(edge)
        slot_s, latest_s = first_slot(
            arrival_s=now_s + travel_s,
            start_s=max(self._free_at_s, now_s),
            ahead=len(self._queued),
            plain=len(self._plain),
            # Whoever is late may come in the next second or never: it is not counted on.
            due_s=self._drafting.after(now_s),
            batch=self._batch,
            step_s=lambda trees: self.cost.step_s(max(trees, 1) * self._tree_rows.value),
        )
        # Others come as well if they wait for a credit, or are told so right after this one.
        others = self.credits.wanted or (now_s >= self._free_at_s and bool(self._verified))
        late_s = 0.0 if others else max(latest_s - slot_s, 0.0)
        return max(slot_s - now_s - travel_s, 0.0), late_s

    def _budget(self, edge: Edge) -> int:
        """Nodes whose expected tokens are worth the time that their rows take from everybody.

        The next node is worth it while its chance exceeds the tokens that the server gives in the
        time of one more row: the condition of the largest ratio of tokens to time (Dinkelbach,
        1967), with the rate that is reached as the price.
        """
        if not self._pipelined:
            return min(edge.max_nodes, self._max_step_nodes - 1)
        trees = max(self._step_trees.value, 1.0)
        most = min(edge.max_nodes, int(self._max_step_nodes / trees) - 1)
        nodes = 0
        for rows, price in self._prices:
            worth = edge.acceptance.best_below(price) if price > 0 else math.inf
            here = min(most, rows, worth)
            nodes = max(nodes, int(here))
            if here < rows:
                break
        return nodes

    def _stake(self, edge: Edge) -> int:
        """Nodes of the next draft: its budget, or a half of it and so on where it risks too much.

        0 is to decode plainly.
        """
        nodes = self._budget(edge)
        if not self._pipelined:
            return nodes
        if nodes == 0 or not self.cost.known:
            return 0
        sent, plain_s = edge.sent_nodes, self._plain_s()
        drafted_s = edge.round_s.value if edge.round_s.count else self._round_s(edge, nodes)
        expected = edge.acceptance.accepted(min(nodes, math.ceil(sent.value or nodes)))
        edge.trial.expect((1 + expected) * plain_s / drafted_s)
        most_s, most_nodes = edge.trial.most_tokens * plain_s, nodes
        while nodes and self._round_s(edge, nodes, nodes / most_nodes) > most_s:
            nodes //= 2
        return nodes

    def _most_draft_s(self, edge: Edge, nodes: int) -> float:
        """How long a draft may take before the round takes longer than is risked."""
        step_s = self.cost.step_s(self._other_rows + 1 + nodes)
        return edge.trial.most_tokens * self._plain_s() - step_s - edge.rtt_s.value

    def _plain_s(self) -> float:
        """Time of one token of plain decoding beside the others' trees."""
        return self._turns * self._token_s

    def _round_s(self, edge: Edge, nodes: int, share: float = 1.0) -> float:
        """Time of a round with a tree that takes a share of the usual time to draft."""
        step_s = self.cost.step_s(self._other_rows + 1 + nodes)
        draft_s = share * edge.draft_s.value
        return max(step_s + edge.rtt_s.value + draft_s, self._turns * step_s)

    @property
    def _turns(self) -> int:
        """Steps until everybody had one."""
        return -(-len(self._edges) // self._batch)
