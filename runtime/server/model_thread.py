"""The thread that runs the model: step after step, without waiting for the event loop.

While it runs one step it can be offered the next, and takes that up the moment the first is over,
before anybody has looked at its outcomes. An offered step can be withdrawn until then. So between
two steps the model waits for this thread's own few lines and for nothing else.

Invariant: a step that has been offered is either withdrawn, or it is run and reported exactly once,
in the order of the offers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.model.engine import Engine
from runtime.server.request import Request
from runtime.server.schedule.step import Step
from runtime.server.verify.verifier import Batch, Outcome, Verified, run


@dataclass(eq=False)
class Offer:
    """A step on its way through the thread, and what came of it."""

    step: Step
    batch: Batch
    outcomes: list[Outcome] = field(default_factory=list)
    fault: BaseException | None = None  # of the server itself, which cannot go on


class ModelThread:
    """Runs steps on `engine`."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._offers: deque[Offer | None] = deque()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[Offer], object]) -> None:
        """Begin to take steps; `ended` is called after each, in this thread."""
        self._thread = threading.Thread(target=self._run_all, args=(ended,), name="model")
        self._thread.start()

    def offer(self, offer: Offer) -> None:
        """Let this step be run after those that were offered before."""
        with self._change:
            self._offers.append(offer)
            self._change.notify()

    def withdraw(self, offer: Offer) -> bool:
        """Take a step back; False if it has begun."""
        with self._change:
            if offer not in self._offers:
                return False
            self._offers.remove(offer)
            return True

    def stop(self) -> None:
        """Let the running step end, and no other begin."""
        with self._change:
            self._offers.clear()
            self._offers.append(None)
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def _next(self) -> Offer | None:
        with self._change:
            while not self._offers:
                self._change.wait()
            return self._offers.popleft()

    def _run_all(self, ended: Callable[[Offer], object]) -> None:
        drawn: dict[Request, int] = {}
        while (offer := self._next()) is not None:
            offer.step.start_s = time.monotonic()
            try:
                offer.outcomes = run(self._engine, offer.batch, drawn)
            except BaseException as fault:
                offer.fault = fault
            offer.step.end_s = time.monotonic()
            drawn = {o.request: o.bonus for o in offer.outcomes if isinstance(o, Verified)}
            ended(offer)
