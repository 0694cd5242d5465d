"""Which step is chosen ahead of the running one: decisions alone, with no model and no thread."""

import asyncio
import itertools

import pytest

from runtime.server import steps as steps_module
from runtime.server.model_thread import Job
from runtime.server.policy.credits import Credits
from runtime.server.policy.pipeline import Pipeline
from runtime.server.request import Request
from runtime.server.schedule.scheduler import Limits, Scheduler
from runtime.server.steps import Steps
from runtime.wire.messages import Open, Turn

LIMITS = Limits(
    max_requests=4,
    max_waiting=4,
    max_batch=4,
    max_step_nodes=16,
    max_nodes=4,
    chunk_tokens=16,
    page_size=4,
    n_pages=16,
)


class Model:
    """Takes steps and runs none; those from `begun` on can be withdrawn."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.begun = 1

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def withdraw(self, job: Job) -> bool:
        can = job in self.jobs[self.begun :]
        if can:
            self.jobs.remove(job)
        return can


class Server:
    """Steps of requests that decode plainly, of a cost that is not known: all is due at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps_module, "put_together", lambda engine, work, before: None)
        pages = itertools.count()
        self.scheduler = Scheduler(
            LIMITS, lambda count: [*itertools.islice(pages, count)], lambda pages: None
        )
        self.pipeline = Pipeline(LIMITS.max_batch, LIMITS.max_step_nodes, Credits())
        self.steps = Steps(
            *(None, self.scheduler, self.pipeline, lambda step, outcomes: None, asyncio.Event())
        )
        self.model = self.steps._model = Model()

    def plain(self, key: str) -> Request:
        params = Open(1, 0, 0.0, 1.0, 0.0, 0, 9, 3, (), max_nodes=0)
        request = Request(key, params, 12, [5, 6, 7], turn=Turn.SERVER)
        self.pipeline.opened(request, 0.0)
        self.scheduler.submit(request)
        return request

    @property
    def chosen(self) -> list[dict[str, bool]]:
        """Of each step the requests, and whether they follow the step before."""
        steps = [job.step.work for job in self.model.jobs]
        return [{work.request.key: work.follows for work in step} for step in steps]


def test_plain_decoding_goes_on_in_the_step_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    server.plain("a")
    server.steps.turn()
    assert server.chosen == [{"a": False}, {"a": True}]


def test_where_offers_still_fit_no_step_is_chosen_before_its_verdicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be without what has been offered."""
    server = Server(monkeypatch)
    server.plain("a")
    for _ in range(100):
        server.pipeline.load.offers.observe(1.0)
    server.steps.turn()
    assert server.chosen == [{"a": False}]


def test_what_comes_is_put_into_the_step_ahead_unless_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(monkeypatch)
    server.plain("a")
    server.steps.turn()
    server.plain("b")
    server.steps.turn()
    assert server.chosen == [{"a": False}, {"b": False, "a": True}]
    server.model.begun = 2
    server.plain("c")
    server.steps.turn()
    assert server.chosen == [{"a": False}, {"b": False, "a": True}]
