"""What a step brought forth, told to the edges: verdicts, how much of a prompt is read, credits.

Whoever ends with its verdict ends here; what an edge sends next is applied in edges.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from runtime.server.edges import Edges
from runtime.server.metrics import Metrics, label
from runtime.server.policy.pipeline import Grant, Pipeline
from runtime.server.request import NO_NODES, Request
from runtime.server.schedule.scheduler import Scheduler
from runtime.server.schedule.step import Step
from runtime.server.verify.logprobs import TokenLogprobs
from runtime.server.verify.logprobs import message as logprobs_message
from runtime.server.verify.verifier import Failed, Outcome, Verified
from runtime.tree import Tree
from runtime.wire import messages as wire

log = logging.getLogger(__name__)

DEVICE_FAILURES = 3  # in a row; a fault of a GPU's context stays as long as its process
NO_GRANT = Grant(wire.Turn.SERVER)


class DeviceError(Exception):
    """The device fails whatever it is given; the message is for the operator."""


@dataclass
class Totals:
    """Counts since the start, for the closing line."""

    steps: int = 0
    verdicts: int = 0
    tokens: int = 0
    busy_s: float = 0.0


@dataclass
class Verdicts:
    """Of all steps; `on_step` is told of each that has ended."""

    edges: Edges
    metrics: Metrics
    scheduler: Scheduler
    pipeline: Pipeline
    on_step: Callable[[Step], None]
    totals: Totals = field(default_factory=Totals)
    _device_failures: int = 0  # since the last verdict

    def answer(self, step: Step, outcomes: Sequence[Outcome]) -> None:
        """Give the verdicts of a step that is over. It is counted when the next one has begun."""
        asyncio.get_running_loop().call_soon(self._count, step)
        for work in step.work:
            if not work.request.stepped:  # its verdict may line it up again, as of then
                work.request.stepped = True
                self.metrics.first_step(work.request, step.start_s)
        self._tell_reading(step)
        for outcome in outcomes:
            was_there = not outcome.request.ended  # else its step before has failed, and counted
            self._deliver(outcome, step)
            if was_there:
                self._judge_device(outcome)
        self.give_credits()

    def _count(self, step: Step) -> None:
        self.metrics.step_ended(len(step.verified), step.seconds)
        self.totals.steps += 1
        self.totals.busy_s += step.seconds
        self.on_step(step)

    def _tell_reading(self, step: Step) -> None:
        """Tell edges how much of their prompts the step leaves in the cache."""
        for work in step.work:
            request = work.request
            if request.round == 0 and not request.ended:
                peer, number = request.key
                read = work.start + work.chunk + work.verify
                peer.send(wire.Reading(number, request.found, read))

    def _judge_device(self, outcome: Outcome) -> None:
        """Raise DeviceError where no step succeeds any more, whoever's it is."""
        if isinstance(outcome, Verified):
            self._device_failures = 0
        elif outcome.by_device:
            self._device_failures += 1
            if self._device_failures == DEVICE_FAILURES:
                self.edges.unready = "the device fails"
                sentence = f"the device failed {DEVICE_FAILURES} times in a row"
                raise DeviceError(f"{sentence}; the last time {outcome.sentence}")

    def _deliver(self, outcome: Outcome, step: Step) -> None:
        """Apply an outcome to its request, unless that has ended meanwhile."""
        request = outcome.request
        if request.ended:
            return
        peer, number = request.key
        if isinstance(outcome, Failed):
            self.edges.refuse(peer, number, wire.ErrorCode.INTERNAL, outcome.sentence)
            return
        was_plain = request.is_plain
        verdict, accepted = self._verdict(request, outcome, step)
        logprobs = outcome.logprobs[: accepted + 1]
        if was_plain and accepted:
            self._tell_apart(request, verdict.round, accepted, logprobs)
            verdict = replace(verdict, round=verdict.round + accepted, node=0)
            logprobs = logprobs[accepted:]
        if logprobs:
            peer.send(logprobs_message(number, logprobs))
        peer.send(verdict)
        if verdict.finish:
            tokens = len(request.context) - request.params.prompt_tokens
            about = self.edges.who(peer, number, finish=label(verdict.finish), tokens=tokens)
            log.info("request ended", extra=about)
            self.edges.end(request)
        elif verdict.turn is wire.Turn.SERVER:
            now_s = time.monotonic()
            if request.verifying:  # it is in the next step already
                request.line_up(NO_NODES, now_s)
                return
            draft = self._known_draft(request, now_s)
            if not self.scheduler.has_room(request, len(draft)):
                draft = NO_NODES
            request.edge.nodes = 0 if request.is_given else len(draft)
            request.line_up(draft, now_s)
            self.edges.lined_up(request)

    def _known_draft(self, request: Request, now_s: float) -> Tree:
        """What a request that decodes plainly has verified with its next token."""
        if request.is_given:
            peer, _ = request.key
            most = self.scheduler.limits.max_nodes if peer.connection.has_offers else 0
            return request.next_given(most)
        return request.take_along(self.pipeline.nodes_to_take(request, now_s))

    def _tell_apart(
        self, request: Request, first: int, accepted: int, logprobs: Sequence[TokenLogprobs]
    ) -> None:
        """Tell the tokens that an offer gave, from round `first` on: each in a verdict of its own.

        The edge that made it may have made others since; so it need not know which one was taken.
        So are those of a given answer, which no edge has drafted.
        """
        peer, number = request.key
        tokens = request.context[-1 - accepted : -1]
        for place, token in enumerate(tokens):
            if logprobs:
                peer.send(logprobs_message(number, logprobs[place : place + 1]))
            none = wire.Finish.NONE
            peer.send(wire.Verdict(number, first + place, 0, token, none, 0, 0, wire.Turn.MORE))
        request.tell_apart(accepted)

    def _verdict(self, request: Request, outcome: Verified, step: Step) -> tuple[wire.Verdict, int]:
        """Commit the walk to the request and say what follows; how many nodes it accepted."""
        assert request.draft is not None, "a verdict without a draft"
        round_number, ready_s = request.round, request.ready_s
        draft, now_s = request.draft, time.monotonic()
        accepted, finish = outcome.commit()
        ranks = draft.ranks(outcome.path[1 : accepted + 1])
        self.scheduler.verified(request)
        self.metrics.verdict(request, len(draft), accepted, now_s)
        request.verdict_s = now_s
        if (rtt_s := self.edges.pulses[request.key[0]].rtt_s) is not None:
            request.edge.pinged(rtt_s)
        self.totals.verdicts += 1
        self.totals.tokens += accepted + 1
        grant = NO_GRANT if finish else self.pipeline.after_verdict(request, ranks, now_s)
        place = (request.params.request, round_number, outcome.path[accepted], request.context[-1])
        queue_ms, verify_ms = (step.start_s - ready_s) * 1e3, step.seconds * 1e3
        spent_ms = wire.clamp_ms(queue_ms), wire.clamp_ms(verify_ms)
        told = (grant.turn, grant.max_nodes)
        return wire.Verdict(*place, finish, *spent_ms, *told, *_times_ms(grant)), accepted

    def give_credits(self) -> None:
        """Tell edges that wait for a credit that they may send."""
        for request, grant in self.pipeline.credits_due(time.monotonic()):
            peer, number = request.key
            peer.send(wire.Credit(number, grant.max_nodes, *_times_ms(grant)))


def _times_ms(grant: Grant) -> tuple[int, int]:
    """How long an edge drafts, as messages carry it; 0 where none does."""
    if grant.turn is not wire.Turn.EDGE:
        return 0, 0
    return wire.clamp_ms(grant.free_s * 1e3), wire.clamp_ms(grant.late_s * 1e3)
