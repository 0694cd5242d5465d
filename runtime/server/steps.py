"""Which step the model runs, and which is next.

While the model runs step n, the event loop gives the verdicts of step n - 1, takes in what comes,
and in the last quarter of step n chooses step n + 1 and puts it together, as far as it is known
before n ends; anew if something comes after that. The model's thread takes it up the moment n is
over. What cannot be decided ahead (who loses its pages, or needs a verdict first) is decided
between two steps, with nothing running.

Invariant: at most one step runs and one is ahead; a request is in the second only if nothing that
the first may bring forth can change its rows there, but for the token that plain decoding draws.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from runtime.model.engine import Engine
from runtime.server.model_thread import Job, ModelThread
from runtime.server.policy.pipeline import Pipeline
from runtime.server.schedule.scheduler import Scheduler
from runtime.server.schedule.step import Step, Work
from runtime.server.verify.verifier import Outcome, Verified, put_together

# The next step is chosen when so much of the running one has passed: what comes until then costs no
# choosing anew, and a step that is over sooner than expected is still followed at once.
LOOK_AHEAD = 0.75


class Steps:
    """Steps of one engine, for the requests of `scheduler` and `pipeline`.

    answer(step, outcomes)  is called when a step is over and its successor, if it had one, runs
    over                    is set when `turn` has something to do
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        pipeline: Pipeline,
        answer: Callable[[Step, Sequence[Outcome]], None],
        over: asyncio.Event,
    ):
        self._engine, self._scheduler, self._pipeline = engine, scheduler, pipeline
        self._answer, self._over = answer, over
        self._model = ModelThread(engine, scheduler.spill.transfers)
        self._running: Job | None = None  # the step that the model runs
        self._ahead: Job | None = None  # the step after it, if it is chosen already
        self._look_s = 0.0  # from when on that is chosen
        self._ended: deque[Job] = deque()  # steps that are over and have no answer yet

    def start(self) -> None:
        """Let the model's thread take steps; it reports to the running event loop."""
        loop = asyncio.get_running_loop()
        self._model.start(lambda job: loop.call_soon_threadsafe(self._report, job))

    def stop(self) -> None:
        """Wait for the running step; no other begins."""
        self._model.stop()

    def turn(self) -> None:
        """Answer what is over, and choose what comes next. Raises what broke the model's thread."""
        while self._ended:
            self._finish(self._ended.popleft())
        if self._running is None:
            self._begin()
        if self._running is not None and time.monotonic() >= self._look_s:
            self._look_ahead()

    @property
    def wake_s(self) -> float:
        """When `turn` has something to do next, although nothing has come; infinite if never."""
        return self._look_s if self._look_s > time.monotonic() else math.inf

    def news(self) -> None:
        """Something has come that a step may take along. If none is being chosen, it will be seen
        when one is."""
        if self._running is None or time.monotonic() >= self._look_s:
            self._over.set()

    def recall(self) -> bool:
        """Take back the step that is ahead, if one is; False if the model has begun it."""
        if self._ahead is not None:
            if not self._model.withdraw(self._ahead):
                return False
            self._scheduler.take_back()
            self._ahead = None
        return True

    def _report(self, job: Job) -> None:
        self._ended.append(job)
        self._over.set()

    def _finish(self, job: Job) -> None:
        """A step is over, and the model may have begun the next."""
        if job.fault is not None:
            raise job.fault
        step, begun = job.step, None if self.recall() else self._ahead
        self._running, self._ahead = begun, None
        outcomes = job.outcomes()
        nodes = {one.request: len(one.path) - 1 for one in outcomes if isinstance(one, Verified)}
        for work in step.verified:
            work.accepted = nodes.get(work.request)
        self._scheduler.step_ended()
        self._pipeline.step_ended(
            len(step.verified), step.rows, step.chunk_rows, step.tokens, step.seconds, step.end_s
        )
        if begun is not None:
            self._started(begun.step, step.end_s)
        self._answer(step, outcomes)

    def _begin(self) -> None:
        """Let the model, which has nothing to do, begin a step, if anything is ready."""
        work = self._scheduler.next_batch()
        if work:
            self._running = self._submit(work)
            self._started(self._running.step, time.monotonic())
        else:
            self._pipeline.stalled(self._scheduler)

    def _look_ahead(self) -> None:
        """Submit the step after the running one, anew if something has come since.

        Not where plain decoding is about to be met by what edges have offered: it would go on
        without that.
        """
        assert self._running is not None, "there is no step to follow"
        plain = (work.request.is_plain for work in self._running.step.verified)
        if self._pipeline.awaits_offers and any(plain):
            return
        if self._ahead is not None:
            is_full = len(self._ahead.step.verified) == self._scheduler.limits.max_batch
            if is_full or not self._scheduler.has_news or not self.recall():
                return
        if work := self._scheduler.next_ahead(self._pipeline.stays_plain):
            self._ahead = self._submit(work)

    def _submit(self, work: Sequence[Work]) -> Job:
        before = None if self._running is None else self._running.batch
        job = Job(Step(work), put_together(self._engine, work, before))
        self._model.submit(job)
        return job

    def _started(self, step: Step, now_s: float) -> None:
        verified = [work.request for work in step.verified]
        self._pipeline.step_started(verified, step.rows, step.chunk_rows, now_s)
        self._look_s = now_s + LOOK_AHEAD * (self._pipeline.free_at_s - now_s)
