"""The model's thread: every step runs once and in order, and the next one waits for nobody.

The engine is a stub that stands at a gate in every pass, so everything here is a count.
"""

import queue
import random
import threading
from collections import deque
from collections.abc import Iterator

import pytest
from torch import Tensor

from bench.stub_server import FACTOR, MAX_CONTEXT, VOCABULARY, StubEngine, next_token
from runtime.bench.circle_model import CircleModel
from runtime.model.batch import TreeBatch
from runtime.model.engine import PagedKV
from runtime.server.model_thread import Job, ModelThread
from runtime.server.request import Request
from runtime.server.schedule.step import Step, Work
from runtime.server.verify.verifier import Failed, Verified, put_together
from runtime.wire.messages import Open, Turn

PATIENCE_S = 60


class GatedModel(CircleModel):
    """Tells which rows it was given, then waits to be let through."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY, MAX_CONTEXT, FACTOR)
        self.seen: queue.Queue[list[int]] = queue.Queue()
        self.gate = threading.Semaphore(0)

    def forward(self, batch: TreeBatch, kv: PagedKV) -> Tensor:
        rows = batch.tokens.tolist()
        self.seen.put(rows)
        assert self.gate.acquire(timeout=PATIENCE_S)
        if BROKEN in rows:
            raise RuntimeError("this pass is broken")
        return super().forward(batch, kv)


class GatedEngine(StubEngine):
    def __init__(self) -> None:
        super().__init__(4096, 16, lambda: None)
        self.model = gated = GatedModel()
        self.seen, self.gate = gated.seen, gated.gate


BROKEN = 200


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
def over() -> "queue.Queue[Job]":
    return queue.Queue()


@pytest.fixture
def thread(engine: GatedEngine, over: "queue.Queue[Job]") -> Iterator[ModelThread]:
    thread = ModelThread(engine, deque())
    thread.start(over.put)
    yield thread
    engine.gate.release(100)
    thread.stop()


def request(engine: StubEngine, token: int, turn: Turn = Turn.EDGE) -> Request:
    """One whose text is this token."""
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 1, ())
    pages = engine.kv.allocate(1)
    return Request(token, params, 50, [token], admitted=True, pages=pages, turn=turn)


def job(engine: StubEngine, *work: Work, before: Job | None = None) -> Job:
    return Job(Step(work), put_together(engine, work, before and before.batch))


def verify(state: Request) -> Work:
    state.enter_step(0, verify=True)
    return Work(state, 0, verify=True)


def follow(state: Request) -> Work:
    state.follow()
    return Work(state, 0, verify=True, follows=True)


def test_the_next_step_begins_before_anybody_has_seen_the_last(
    thread: ModelThread, engine: GatedEngine
) -> None:
    states = [request(engine, token) for token in (1, 2, 3)]
    for state in states:
        thread.submit(job(engine, verify(state)))
    for token in (1, 2, 3):
        assert engine.seen.get(timeout=PATIENCE_S) == [token]
        engine.gate.release()


def test_a_row_that_follows_has_the_token_that_was_drawn(
    thread: ModelThread, engine: GatedEngine, over: "queue.Queue[Job]"
) -> None:
    """Its verdict is that of decoding token by token, though no verdict was applied in between."""
    state = request(engine, 7, Turn.SERVER)
    running = job(engine, verify(state))
    thread.submit(running)
    thread.submit(job(engine, follow(state), before=running))
    engine.gate.release(2)
    first, second = (over.get(timeout=PATIENCE_S).outcomes() for _ in range(2))
    assert first == [Verified(state, [0], next_token(7))]
    assert second == [Verified(state, [0], next_token(next_token(7)))]


def test_who_follows_a_step_that_failed_harms_nobody(
    thread: ModelThread, engine: GatedEngine, over: "queue.Queue[Job]"
) -> None:
    bad, good = request(engine, BROKEN, Turn.SERVER), request(engine, 5, Turn.SERVER)
    running = job(engine, verify(bad), verify(good))
    thread.submit(running)
    thread.submit(job(engine, follow(bad), follow(good), before=running))
    engine.gate.release(5)  # both together, each alone, one more to see what failed, both together
    first, second = (over.get(timeout=PATIENCE_S).outcomes() for _ in range(2))
    assert isinstance(first[0], Failed)
    assert first[1] == Verified(good, [0], next_token(5))
    assert second[1] == Verified(good, [0], next_token(next_token(5)))


def test_a_step_can_be_withdrawn_until_it_begins(
    thread: ModelThread, engine: GatedEngine, over: "queue.Queue[Job]"
) -> None:
    first, second, third = (job(engine, verify(request(engine, token))) for token in (1, 2, 3))
    for one in (first, second, third):
        thread.submit(one)
    assert engine.seen.get(timeout=PATIENCE_S) == [1]
    assert not thread.withdraw(first), "it is running"
    assert thread.withdraw(second)
    assert not thread.withdraw(second), "it is gone"
    engine.gate.release(2)
    assert [over.get(timeout=PATIENCE_S) for _ in range(2)] == [first, third]
    assert not thread.withdraw(first), "it is over"


@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_withdrawn_or_reported_once_and_in_order(
    thread: ModelThread, engine: GatedEngine, over: "queue.Queue[Job]", seed: int
) -> None:
    dice, state = random.Random(seed), request(engine, 1)
    engine.gate.release(400)
    due = []
    for _ in range(300):
        work = Work(state, 0, verify=True)
        one = job(engine, work)
        thread.submit(one)
        if dice.random() < 0.5 or not thread.withdraw(one):
            due.append(one)
    assert [over.get(timeout=PATIENCE_S) for _ in due] == due
    thread.stop()
    assert over.empty()


def test_a_fault_of_the_server_is_reported(
    thread: ModelThread, engine: GatedEngine, over: "queue.Queue[Job]"
) -> None:
    """What no request can be blamed for must not be mistaken for an empty step."""
    broken = job(engine, verify(request(engine, 1)))
    broken.batch = None
    thread.submit(broken)
    assert isinstance(over.get(timeout=PATIENCE_S).fault, AttributeError)


def test_nothing_begins_after_a_stop(engine: GatedEngine, over: "queue.Queue[Job]") -> None:
    thread = ModelThread(engine, deque())
    thread.start(over.put)
    first, second = (job(engine, verify(request(engine, token))) for token in (1, 2))
    thread.submit(first)
    thread.submit(second)
    assert engine.seen.get(timeout=PATIENCE_S) == [1]
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    while second in thread._jobs:
        pass
    engine.gate.release(2)
    stopping.join()
    assert over.get_nowait() is first
    assert over.empty()
