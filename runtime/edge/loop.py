"""The edge's loop: draft, send, draft ahead until the verdict, commit, until the text ends.

Everything but passes of the draft model happens on the event loop, between two passes, so what the
server says is heard at once. Deals in token ids only; text is the business of `client.py`.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runtime.edge.draft.batcher import Batcher
from runtime.edge.draft.guide import Guide, Matcher
from runtime.edge.draft.offering import Offering, ahead, due_s
from runtime.edge.draft.pace import Slot
from runtime.edge.draft.speculation import Commit, Edits, Noise, Proactive, Speculation, TreeShape
from runtime.edge.net.link import Link, Request
from runtime.sampling import Sampling
from runtime.tree import ROOT
from runtime.wire import messages as wire


@dataclass(frozen=True)
class Drafting:
    """How the edge predicts the target's tokens; `coupling` uses the noise they are drawn with.

    `matcher` makes one of a constraint's kind and text, so that only what it allows is drafted.
    """

    shape: TreeShape
    coupling: bool = True
    proactive: Proactive = Proactive.MULTI
    matcher: Callable[[str, str], Matcher] | None = None

    def guide(self, sampling: Sampling, prompt_tokens: int) -> Guide | None:
        """That of an answer, of which the end of the prompt may be the beginning."""
        constraint = sampling.constraint
        if constraint is None or self.matcher is None:
            return None
        make = partial(self.matcher, constraint.kind, constraint.text)
        return Guide(make, prompt_tokens - sampling.output_tokens)


@dataclass(frozen=True)
class Round:
    """What one verdict brought."""

    verdict: wire.Verdict
    commit: Commit
    passes: int  # of the draft model, for the draft of this round, or for what was offered
    passes_ahead: int  # while it was in flight
    waited_s: float | None = None  # from when the draft was sent; None where none was
    logprobs: wire.Logprobs | None = None  # of its tokens, where they were asked for
    offered: int = 0  # nodes that were offered unasked since the verdict before

    @property
    def tokens(self) -> tuple[int, ...]:
        """The accepted draft tokens, then the target's own."""
        return self.commit.tokens


def generate(
    link: Link,
    batcher: Batcher,
    prompt: Sequence[int],
    sampling: Sampling,
    drafting: Drafting,
    on_reading: Callable[[wire.Reading], None] = lambda reading: None,
) -> AsyncGenerator[Round, None]:
    """The whole exchange for one prompt, a `Round` for each verdict.

    `on_reading` hears how far the server has read the prompt. Raises ServerError. Leaving the
    iteration early cancels the request on the server.
    """
    max_nodes = min(drafting.shape.max_budget, link.welcome.max_nodes)
    vocabulary_size = min(batcher.vocabulary_size, link.welcome.vocabulary_size)
    if max(prompt, default=0) >= vocabulary_size:
        max_nodes = 0  # the draft model cannot read it
    edits = edits_of(sampling)
    speculation = Speculation(
        context=list(prompt),
        limit=min(len(prompt) + sampling.max_tokens, link.welcome.max_context),
        shape=replace(drafting.shape, max_budget=max_nodes),
        proactive=drafting.proactive,
        noise=Noise(sampling.seed, sampling.temperature if drafting.coupling else 0.0),
        vocabulary_size=vocabulary_size,
        guide=drafting.guide(sampling, len(prompt)),
        edits=edits,
        history=edits.history(prompt, sampling.output_tokens) if edits else None,
    )
    return rounds(link, batcher, sampling, speculation, on_reading)


def edits_of(sampling: Sampling) -> Edits | None:
    """What the target does to its logits, None where it leaves them as they are."""
    penalties = (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty)
    edits = Edits(*penalties, sampling.logit_bias)
    return edits if edits.change_something else None


async def rounds(
    link: Link,
    batcher: Batcher,
    sampling: Sampling,
    speculation: Speculation,
    on_reading: Callable[[wire.Reading], None] = lambda reading: None,
) -> AsyncGenerator[Round, None]:
    """`generate` for a speculation that has only its prompt."""
    max_nodes = speculation.shape.max_budget
    request = link.request(speculation.context, sampling, max_nodes, on_reading)
    exchange = Exchange(request, speculation, batcher)
    try:
        while True:
            await exchange.draft_ahead()
            round_ = await exchange.commit()
            yield round_
            if request.finished:
                return
            match round_.verdict.turn:
                case wire.Turn.EDGE | wire.Turn.WAIT:
                    await exchange.draft(round_.verdict)
                case wire.Turn.SERVER if exchange.may_offer(round_.verdict, link.has_offers):
                    await exchange.offer(link.rtt_s or 0.0)
    finally:
        batcher.finish(speculation)
        request.close()


@dataclass(frozen=True)
class DraftTurn:
    """The edge's turn, as a grant that came at a time of time.monotonic() says it."""

    max_nodes: int
    received_s: float
    slot: Slot

    @classmethod
    def of(cls, message: wire.Verdict | wire.Credit, received_s: float) -> "DraftTurn":
        """What a message grants that came at `received_s`; how many nodes, a credit will say."""
        if isinstance(message, wire.Verdict) and message.turn is wire.Turn.WAIT:
            return cls(wire.MAX_NODES, received_s, Slot(math.inf, 0.0))
        late_s = math.inf if message.late_ms == wire.NO_LIMIT_MS else message.late_ms * 1e-3
        return cls(message.max_nodes, received_s, Slot(message.free_ms * 1e-3, late_s))

    @property
    def needs_credit(self) -> bool:
        return math.isinf(self.slot.free_s)


class Exchange:
    """One request's rounds: moves drafts and verdicts between its speculation and the server."""

    def __init__(self, request: Request, speculation: Speculation, batcher: Batcher):
        self._request, self._speculation, self._batcher = request, speculation, batcher
        self._pace = batcher.pace
        self._offering = Offering(batcher.at_once)
        self._told_s: float | None = None  # when a verdict came after which the server decodes on
        self._used_s: float | None = None  # since when the server could verify what was sent
        self._sent_s: float | None = None  # since when it is on the way
        self._passes = self._passes_ahead = self._offered = 0

    async def draft_ahead(self) -> None:
        """Until the verdict is due, foresee it, pass by pass."""
        self._passes_ahead = 0
        while self._is_time_ahead() and (frontier := self._speculation.frontier_ahead()):
            if not await self._batcher.run(self._speculation, frontier):
                break
            self._passes_ahead += 1

    def _is_time_ahead(self) -> bool:
        if self._request.has_mail:
            return False
        return self._used_s is None or self._pace.fits_ahead(time.monotonic() - self._used_s)

    async def commit(self) -> Round:
        """Receive the verdict and apply it."""
        verdict = await self._request.verdict()
        if self._used_s is not None:
            self._pace.saw_wait(max(self._request.arrived_s - self._used_s, 0.0))
        if verdict.turn is not wire.Turn.MORE:
            self._pace.saw_step(verdict.verify_ms * 1e-3)
            if self._told_s is not None:
                self._pace.saw_round(self._request.arrived_s - self._told_s)
            goes_on = verdict.turn is wire.Turn.SERVER
            self._told_s = self._request.arrived_s if goes_on else None
        commit = self._speculation.commit(verdict.node, verdict.bonus)
        waited_s = None if self._sent_s is None else self._request.arrived_s - self._sent_s
        counts = (self._passes, self._passes_ahead)
        result = Round(verdict, commit, *counts, waited_s, self._request.logprobs, self._offered)
        self._used_s, self._sent_s, self._passes, self._offered = None, None, 0, 0
        return result

    async def draft(self, verdict: wire.Verdict) -> None:
        """Grow a tree as long as it pays, and send it."""
        turn = DraftTurn.of(verdict, self._request.arrived_s)
        if await self._catch_up(turn.max_nodes):
            turn = await self._grow(turn)
        if turn.needs_credit:
            turn = DraftTurn.of(await self._request.credit(), self._request.arrived_s)
        tree = self._speculation.send(turn.max_nodes)
        self._request.send(len(self._speculation.context), tree)
        self._sent_s = time.monotonic()
        self._used_s = max(self._sent_s, turn.received_s + turn.slot.free_s)

    def may_offer(self, verdict: wire.Verdict, has_offers: bool) -> bool:
        """Whether the server would like an offer, or what it most likely drops costs nothing."""
        return verdict.max_nodes > 0 or (has_offers and self._batcher.at_once)

    async def offer(self, rtt_s: float) -> None:
        """Send unasked what is likely to follow, where there is something, over such a link.

        It is sent in time for a step, and the tree goes on growing until the next verdict, which it
        outlives if that is foreseen in it. What has come meanwhile is looked at first.
        """
        speculation, round_s = self._speculation, self._pace.round_s
        if not await self._catch_up(speculation.shape.max_budget):
            return
        steps = ahead(self._since_told_s() + rtt_s, round_s)
        await self._deepen(due_s(steps, rtt_s, round_s))
        if self._request.has_mail:
            return
        before = self._offering.nodes
        tree = self._offering.next(speculation, steps)
        if tree is not None:
            self._request.offer(len(speculation.context), tree)
            self._offered = self._offering.nodes - before
        await self._deepen(steps * round_s)

    async def _deepen(self, until_s: float) -> None:
        """Grow the tree, by passes that end so long after the last verdict came."""
        speculation = self._speculation
        while frontier := speculation.frontier_to_offer():
            if self._request.has_mail or self._since_told_s() + self._pace.pass_s > until_s:
                return
            if not await self._pass(frontier):
                return

    def _since_told_s(self) -> float:
        return time.monotonic() - self._request.arrived_s

    async def _catch_up(self, max_nodes: int) -> bool:
        """Run accepted text that the cache lacks. False where there is no room for it."""
        while self._speculation.frontier(max_nodes) == [ROOT]:
            if not await self._pass([ROOT]):
                return False
        return True

    async def _grow(self, turn: DraftTurn) -> DraftTurn:
        """Deepen the tree; the turn to send it by, since a credit may come meanwhile."""
        share = 1.0  # what the last pass has brought of what its nodes' probabilities promised
        for _ in range(self._speculation.shape.max_beam_len - 1):
            if turn.needs_credit and self._request.has_mail:
                turn = DraftTurn.of(await self._request.credit(), self._request.arrived_s)
            frontier = self._speculation.frontier(turn.max_nodes)
            tokens = self._speculation.expected_tokens
            promise = self._speculation.probability(frontier)  # the most that a pass can add
            elapsed_s = time.monotonic() - turn.received_s
            if not self._pace.is_worth_a_pass(tokens, share * promise, elapsed_s, turn.slot):
                break
            if not await self._pass(frontier):
                break
            share = (self._speculation.expected_tokens - tokens) / promise
        return turn

    async def _pass(self, frontier: Sequence[int]) -> bool:
        """One timed pass of the draft model. False where there is no room for it."""
        started_s = time.monotonic()
        ran = await self._batcher.run(self._speculation, frontier)
        self._pace.saw_pass(time.monotonic() - started_s)
        self._passes += 1
        return ran
