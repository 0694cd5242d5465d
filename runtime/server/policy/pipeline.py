"""What an edge is told with its verdict: draft or not, how many nodes, and for how long.

The server must never wait while there is work, and an edge need not hurry while others are
verified: it may draft until just before that step ends, and weighs for itself whether to go on
where the server has nothing else to begin with. So requests fall into groups by themselves, one
drafting while another is verified. A step takes what has come and waits for nobody.

An example: a step takes 100 ms, a message 10 ms each way, and A and B are alone. A's verdict leaves
as B's tree begins its step. If A's tree comes within 100 ms it is in the next step, so A is told
that 80 ms of drafting cost nothing (`free_s`: 100 less a round trip), and how much longer the
server may stand still for it (`late_s`: as much as A's trial may lose). At 100 ms A's tree begins
its step, B has its verdict, and is told the same.

Pure policy over requests and numbers: knows no model, socket or clock; the time is an argument.
Source: SpecEdge (arXiv:2505.17052) section 4.3, its calibration made continuous.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from runtime.server.policy.budget import (
    does_better_unasked,
    most_draft_s,
    nodes_to_grant,
    nodes_to_take,
    only_loses,
)
from runtime.server.policy.credits import Credits
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.load import Load
from runtime.server.policy.objective import Objective
from runtime.server.policy.slots import Expected, first_slot
from runtime.server.policy.window import HOLD_S, Place
from runtime.server.request import Phase, Request
from runtime.wire.messages import MAX_NODES, Turn

# A credit is for the step that a tree can be in if its edge hurries: if it drafts half as long as
# it usually would from now on. With 1 for "as long as usual" places near at hand would stay empty.
HURRY = 0.5
# Where so large a share of plain tokens finds an offer that still fits, a step is chosen only when
# the one before it has its verdicts. The server stands still for that millisecond; a step chosen
# ahead would go without the offer, which costs more.
OFFERS_SHARE = 1 / 8


class Grant(NamedTuple):
    """The turn, and what goes with it. With Turn.WAIT nothing does yet: the credit says the rest.

    With Turn.EDGE a tree of at most `max_nodes` drafted nodes may be sent. Drafted for `free_s`
    seconds it comes just before its step: sooner is of no use. For `late_s` longer the server would
    be idle without it, and later the step starts without it.
    With Turn.SERVER the edge may offer; a step would take along `max_nodes` of what fits; 0: none.
    """

    turn: Turn
    max_nodes: int = 0
    free_s: float = 0.0
    late_s: float = 0.0


WAITS = Grant(Turn.WAIT)


class Pipeline:
    """Requests from `opened` to `closed`; the other calls follow the server's loop.

    `pipelined=False` is the paper's ablation: no slots, and every edge drafts what it likes.
    `objective_s` is the time per token that is promised (`objective.py`).
    """

    def __init__(
        self,
        max_batch: int,
        max_step_nodes: int,
        credits: Credits,
        pipelined: bool = True,
        objective_s: float = math.inf,
    ):
        self.load = Load(max_batch, max_step_nodes)
        self.objective = Objective(objective_s)
        self.credits = credits
        self._pipelined = pipelined
        self._plain = 0  # requests that decode plainly: they can be in every step
        self._queued = 0  # that have a prompt or a tree that can be in the next step
        self._untold = 0  # verdicts that are owed, of steps that are over or running
        self._expected = Expected()  # when trees should come that may be sent or are on the way
        self.free_at_s = 0.0  # when the running step is expected to end

    def opened(self, request: Request, now_s: float) -> None:
        """A request whose prompt waits to be verified."""
        self.load.opened(now_s)
        self._queued += 1
        self.credits.opened(request)

    def closed(self, request: Request) -> None:
        """A request has ended, in whatever phase."""
        self.load.closed()
        self._untold -= request.verifying
        if request.is_plain:
            self._plain -= 1
        elif request.is_drafting:
            self._expected.discard(request.edge.due_s)
        elif request.draft is not None and not request.verifying:
            self._queued -= 1
        self.credits.closed(request)

    def draft_arrived(self, request: Request, draft_s: float, now_s: float) -> None:
        """The request's draft has come, sent `draft_s` after the grant was received."""
        assert request.draft is not None, f"{request.key} has no draft"
        request.edge.arrived(len(request.draft), draft_s, now_s)
        self._expected.discard(request.edge.due_s)
        self._queued += 1
        self.credits.window.hold(request, math.inf)

    def offer_came(self, request: Request, base: int, now_s: float) -> None:
        """An offer has come that goes on from the first `base` tokens of the text."""
        decoded_s = (len(request.context) - base) * self.load.plain_s
        request.edge.offer_came(now_s - request.edge.verdict_s + decoded_s)

    def stalled(self, requests: Iterable[Request]) -> None:
        """No step is running, and none can begin: what these have sent waits for pages of others.

        Their credits come back, so that the others may send, end, and give the pages up.
        """
        if self.credits.wanted:
            for request in requests:
                if request.draft is not None:
                    self.credits.window.release(request)

    def step_started(
        self, verified: Collection[Request], rows: int, chunk_rows: int, now_s: float
    ) -> None:
        """A step verifies these requests, with `rows` rows in trees and `chunk_rows` in prompts."""
        self._untold += len(verified)
        for request in verified:
            # who follows its own step was taken from the queue by that one
            self._queued -= not request.is_plain and request.verifying == 1
            self.credits.window.release(request)
        self.free_at_s = now_s + self.load.cost.step_s(rows, chunk_rows)
        self.load.steps += 1

    def step_ended(
        self, trees: int, rows: int, chunk_rows: int, tokens: int, step_s: float, now_s: float
    ) -> None:
        """That step took `step_s`, verified `trees` trees and gave `tokens`. Verdicts follow."""
        self.load.step_ended(trees, rows, chunk_rows, tokens, step_s, now_s)
        self.free_at_s = now_s

    def after_verdict(self, request: Request, ranks: Sequence[int], now_s: float) -> Grant:
        """The next move after a verdict that accepted the nodes of these ranks (`Tree.ranks`)."""
        self._learn(request, ranks, now_s)
        was_plain, edge = request.is_plain, request.edge
        self._untold -= 1
        self._plain -= was_plain
        edge.verdict_s, edge.nodes = now_s, 0
        holds = request.offer is not None and len(request.offered) > 0
        if was_plain:
            # Whether it is taken along or not: if it is not, as the step was chosen ahead, that is
            # the very reason to choose no more steps ahead.
            self.load.offers.observe(holds and self._useful_nodes(edge, now_s) > 0)
        # what it has offered is verified first, unless it is better asked
        takes = holds and request.takes_offer
        goes_on = request.verifying > 1 or (takes and self._does_better_unasked(edge))
        self.objective.verdict(edge.stretch, len(ranks) + 1, self.load.all_plain_s, now_s)
        edge.worth_nodes = 0 if goes_on else self._nodes(edge, now_s)
        edge.decided(asked=edge.worth_nodes > 0)
        if edge.worth_nodes == 0:
            request.told(Turn.SERVER)
            self._plain += 1
            return Grant(Turn.SERVER, self._useful_nodes(edge, now_s))
        # Where others wait already, all requests of this step join them before any credit is given:
        # who is next is then chosen among all, and not by whose verdict was told first.
        others_wait = self.credits.wanted
        request.told(Turn.WAIT)
        request.drop_offer()
        self.credits.want(request)
        if others_wait or not self._give(now_s):
            return WAITS
        return self._grant(request, edge.worth_nodes, now_s)

    def stays_plain(self, request: Request) -> bool:
        """Whether one that decodes plainly will go on to, as far as is known now."""
        return not request.takes_offer and self._nodes(request.edge, self.free_at_s) == 0

    @property
    def awaits_offers(self) -> bool:
        """Whether so many offers still fit that a step is chosen when all verdicts are out."""
        return self.load.offers.value >= OFFERS_SHARE

    def nodes_to_take(self, request: Request, now_s: float) -> int:
        """Of what the request's edge has offered, the most nodes that its next step takes along."""
        if request.offer is None or self.objective.is_plain(now_s):
            return 0
        misses_steps = self.load.requests > 1 and not self.awaits_offers
        return nodes_to_take(request.edge, self.load, misses_steps)

    def credits_due(self, now_s: float) -> list[tuple[Request, Grant]]:
        """Requests that were told to wait and may send now."""
        # who waited while plain decoding became the rule has its tree to send all the same
        most = 1 if self.objective.is_plain(now_s) else MAX_NODES
        return [
            (request, self._grant(request, min(request.edge.worth_nodes, most), now_s))
            for request in self._give(now_s)
        ]

    @property
    def wake_s(self) -> float:
        """When credits may be due although no step ends by then; infinite if never."""
        return self.credits.wake_s

    def check(self, requests: Iterable[Request]) -> None:
        """Recount who stands where, from all that are open; the loop tells of a whole prompt."""
        requests = [request for request in requests if request.phase is not Phase.READING]
        assert self.load.requests == len(requests), f"{self.load.requests} of {len(requests)}"
        plain = sum(request.is_plain for request in requests)
        assert self._plain == plain, f"{self._plain} decode plainly, counted {plain}"
        due_s = sorted(request.edge.due_s for request in requests if request.is_drafting)
        assert self._expected.after(-math.inf) == due_s, "other trees are expected"
        drafts = [r for r in requests if r.draft is not None and not r.is_plain]
        queued = sum(not request.verifying for request in drafts)
        assert self._queued == queued, f"{self._queued} are queued, counted {queued}"
        self.credits.window.check()
        holders = sum(request.has_credit for request in requests)
        assert len(self.credits.window) == holders, f"{len(self.credits.window)} of {holders} hold"

    def _does_better_unasked(self, edge: EdgeProfile) -> bool:
        """One that drafts at once goes on with what it has offered."""
        return not edge.takes_time or does_better_unasked(edge, self.load)

    def _useful_nodes(self, edge: EdgeProfile, now_s: float) -> int:
        """Nodes that a step would take along of an offer, if it missed no step for that."""
        if not (edge.makes_offers and self._pipelined) or edge.rests:
            return 0
        if self.objective.is_plain(now_s):
            return 0
        return nodes_to_take(edge, self.load, misses_steps=False)

    def _learn(self, request: Request, ranks: Sequence[int], now_s: float) -> None:
        edge, turn = request.edge, request.turn
        if turn is not None:
            edge.judged(len(ranks) > 0)
        if turn is Turn.SERVER:
            edge.offered(ranks)
            if edge.nodes:
                edge.foreseen.observe(request.decoded + len(ranks))
            elif request.offer is not None and not len(request.offered):
                edge.foreseen.observe(request.foreseen)
                request.drop_offer()
        was_asked = turn is Turn.EDGE
        if not was_asked and not edge.nodes:
            if edge.trial.plain():
                edge.forget()
            return
        round_s = now_s - edge.verdict_s
        if was_asked:
            edge.round_s.observe(round_s)
            edge.acceptance.observe(edge.nodes, ranks)
        if not self.load.cost.known:
            return
        if edge.nodes:
            edge.trial.drafted(len(ranks) + 1, round_s / self.load.plain_s)
        else:
            edge.trial.nothing_drafted(round_s / self.load.plain_s)

    def _nodes(self, edge: EdgeProfile, now_s: float) -> int:
        """Nodes of its next draft; 0 is to decode plainly."""
        if self.objective.is_plain(now_s):
            return 0
        if self.objective.is_promised:
            edge.trial.allow(self.objective.slack_tokens(self.load.all_plain_s))
        if not self._pipelined:
            return min(edge.max_nodes, self.load.max_step_nodes - 1)
        if not (self.load.is_oversubscribed or edge.is_worth_asking(self.load.plain_s)):
            return 0
        if edge.takes_time and does_better_unasked(edge, self.load):
            return 0
        if self.objective.is_promised and only_loses(edge, self.load):
            return 0
        return nodes_to_grant(edge, self.load)

    def _give(self, now_s: float) -> list[Request]:
        """Requests that get a credit now."""
        return self.credits.give(now_s, lambda request: self._place(request, now_s))

    def _grant(self, request: Request, max_nodes: int, now_s: float) -> Grant:
        """Let the request's edge send a tree, and remember when it should come."""
        edge = request.edge
        free_s, late_s = 0.0, math.inf
        if self._pipelined:
            free_s, late_s = self._slot(edge, now_s)
            late_s = min(late_s, max(most_draft_s(edge, self.load, max_nodes) - free_s, 0.0))
        request.credited()
        edge.grant_s = now_s
        edge.due_s = now_s + edge.rtt_s.value + edge.wanted_s(now_s)
        self._expected.add(edge.due_s)
        self.credits.window.hold(request, edge.due_s + HOLD_S)
        return Grant(Turn.EDGE, max_nodes, free_s, late_s)

    def _place(self, request: Request, now_s: float) -> Place:
        """Where a tree would be verified that is sent as soon as its edge is ready, if told now."""
        edge, load = request.edge, self.load
        arrival_s = now_s + self._travel_s(edge) + HURRY * edge.wanted_s(now_s)
        start_s, step_s = self._next_step_s(now_s, arrival_s), load.step_s.value
        behind = math.ceil((arrival_s - start_s) / step_s) if arrival_s > start_s and step_s else 0
        # Whoever decodes plainly is in every step.
        batch = max(load.batch - self._plain, 1)
        return Place(load.steps + 1 + behind, 1 + behind, batch)

    def _next_step_s(self, now_s: float, arrival_s: float) -> float:
        """When the next step begins if a tree comes then: at once, or with the first that comes."""
        if self._queued or self._plain or now_s < self.free_at_s:
            return max(self.free_at_s, now_s)
        return min([arrival_s, *self._expected.after(now_s)[:1]])

    def _travel_s(self, edge: EdgeProfile) -> float:
        """From a grant to a tree for it, with some reserve."""
        return edge.rtt_s.value + 2 * edge.rtt_s.deviation + self.load.cost.deviation_s

    def _slot(self, edge: EdgeProfile, now_s: float) -> tuple[float, float]:
        """How long it should draft to be in its step, and how much longer that step can wait."""
        load, arrival_s = self.load, now_s + self._travel_s(edge)
        cost, tree_rows = load.cost, load.tree_rows.value
        slot_s, latest_s = first_slot(
            arrival_s=arrival_s,
            start_s=max(self.free_at_s, now_s),
            ahead=self._queued,
            plain=self._plain,
            # Whoever is late may come in the next second or never: it is not counted on.
            due_s=self._expected.after(now_s),
            batch=load.batch,
            step_s=lambda trees: cost.step_s((trees or 1) * tree_rows),
        )
        # Others come as well if they wait for a credit, or are told so right after this one.
        is_idle = now_s >= self.free_at_s
        others = self.credits.wanted or (is_idle and self._untold > 0)
        late_s = 0.0 if others else max(latest_s - slot_s, 0.0)
        return slot_s - arrival_s, late_s  # exactly 0 where the server has nothing else to do
