"""The thread that runs the model: step after step, without waiting for the event loop.

While one step runs it can be given the next. A device runs steps by itself: the next is queued
behind the first as soon as it is given, and begins without anybody having looked at the outcomes of
the first. A CPU takes it up the moment the first is over and its outcomes are told. A step can be
withdrawn until it is queued or taken up.

Invariant: a step that has been submitted is either withdrawn, or it is run and reported exactly
once, in the order of submission.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from runtime.model.engine import Engine, PagedKV
from runtime.model.page_copy import PageCopy
from runtime.server.schedule.spill import Transfer
from runtime.server.schedule.step import Step
from runtime.server.verify.verifier import Batch, Launched, Outcome, launch, settle

# How often is looked whether a device is done, which tells nobody: short beside any step of one.
LOOK_S = 0.0002

Transfers = deque[Transfer[PageCopy]]


@dataclass(eq=False)
class Job:
    """A step on its way through the thread, and what came of it."""

    step: Step
    batch: Batch
    launched: Launched | None = None
    fault: BaseException | None = None  # of the server itself, which cannot go on

    def outcomes(self) -> list[Outcome]:
        """What came of it, once it is over: read by the event loop, as the model runs on."""
        return [] if self.launched is None else self.launched.outcomes()


class ModelThread:
    """Runs steps on `engine`; before each it makes the `transfers` of pages there are by then."""

    def __init__(self, engine: Engine, transfers: Transfers):
        self._engine, self._transfers = engine, transfers
        self._jobs: deque[Job] = deque()
        self._stopping = False
        self._end_s = 0.0  # of the last step that is over
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[Job], object]) -> None:
        """Begin to take steps; `ended` is called after each, in this thread."""
        self._thread = threading.Thread(target=self._run_all, args=(ended,), name="model")
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let this step be run after those that were submitted before."""
        with self._change:
            self._jobs.append(job)
            self._change.notify()

    def withdraw(self, job: Job) -> bool:
        """Take a step back; False if it has begun."""
        with self._change:
            if job not in self._jobs:
                return False
            self._jobs.remove(job)
            return True

    def stop(self) -> None:
        """Let the running step end, and no other begin."""
        with self._change:
            self._jobs.clear()
            self._stopping = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def _run_all(self, ended: Callable[[Job], object]) -> None:
        """Launch steps, and tell of each once it is over; at most two are launched and not over."""
        running: Job | None = None
        last: Launched | None = None
        while (job := self._next(running)) is not None or running is not None:
            if job is not None:
                last = self._launch(job, last)
            if running is not None:
                self._finish(running)
                ended(running)
            running = job

    def _next(self, running: Job | None) -> Job | None:
        """The next job; None once the running step is over, or nothing more is to begin."""
        with self._change:
            while running is None or not _is_over(running):
                if self._jobs:
                    return self._jobs.popleft()
                if self._stopping and running is None:
                    return None
                self._change.wait(None if running is None else LOOK_S)
        return None

    def _launch(self, job: Job, last: Launched | None) -> Launched | None:
        job.step.start_s = time.monotonic()
        try:
            make(self._transfers, self._engine.kv)
            job.launched = launch(self._engine, job.batch, last)
        except BaseException as fault:
            job.fault = fault
        return job.launched

    def _finish(self, job: Job) -> None:
        try:
            if job.launched is not None:
                settle(self._engine, job.launched)
        except BaseException as fault:
            job.fault = fault
        # queued behind another step, it began when that was over
        job.step.start_s = max(job.step.start_s, self._end_s)
        job.step.end_s = self._end_s = time.monotonic()


def make(transfers: Transfers, kv: PagedKV) -> None:
    """Make transfers of pages, in their order, and forget them. One that fails is the server's end:
    the text that a page should have held would be another one's.
    """
    while transfers:
        transfer = transfers.popleft()
        if transfer.is_out:
            transfer.kept.copy = kv.copy_out(transfer.page)
        else:
            assert transfer.kept.copy is not None, "a page is put back that was never taken out"
            kv.copy_in(transfer.kept.copy, transfer.page)


def _is_over(job: Job) -> bool:
    return job.launched is None or job.launched.is_over
