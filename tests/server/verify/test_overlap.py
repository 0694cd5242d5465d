"""A step that is launched before the outcomes of the one before it are fetched.

What it needs of that one never leaves the device. The oracle is the same text, one step at a time.
"""

import queue
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.stub_server import StubEngine, next_token
from runtime.model import staging
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.server.model_thread import Job, ModelThread
from runtime.server.request import Request
from runtime.server.schedule.step import Step, Work
from runtime.server.verify.verifier import (
    Failed,
    Outcome,
    Verified,
    fetch,
    launch,
    put_together,
    settle,
    verify_batch,
)
from runtime.tree import Tree
from runtime.wire.messages import Open, Turn

STEPS = 8
PATIENCE_S = 60
TO_THE_HOST = ("item", "tolist", "cpu", "numpy", "__int__", "__bool__", "__index__", "__float__")


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[0]), "float32", "auto", lambda model: 4096, 16)


def plain(engine: Engine, seed: int) -> Request:
    """One that decodes plainly, greedily or not, behind a prompt that is in the cache."""
    dice = random.Random(seed)
    temperature = dice.choice((0.0, 0.7, 1.3))
    params = Open(1, seed, temperature, 1.0, 0.0, dice.choice((0, 5)), 50, 6, ())
    context = [dice.randrange(100) for _ in range(6)]
    pages = engine.kv.allocate(4)
    request = Request(seed, params, 60, context, admitted=True, pages=pages, turn=Turn.SERVER)
    assert verify_batch(engine, [Work(request, 5, verify=False)]) == []
    request.cached = 5
    return request


def decode(engine: Engine, request: Request, tokens: int) -> list[int]:
    """Its text, one step at a time."""
    for _ in range(tokens):
        (outcome,) = verify_batch(engine, [Work(request, 0, verify=True)])
        _apply(outcome)
    return request.context[6:]


def _apply(outcome: Outcome) -> None:
    assert isinstance(outcome, Verified), outcome
    outcome.request.context.append(outcome.bonus)
    outcome.request.cached = outcome.request.root


def overlapped(
    engine: Engine,
    requests: Sequence[Request],
    mates: Callable[[], Sequence[Work]] = lambda: (),
) -> None:
    """STEPS steps of plain decoding, each launched before the one before it is fetched."""
    ahead = launch(engine, put_together(engine, [Work(r, 0, True) for r in requests]), None)
    for _ in range(STEPS - 1):
        running = ahead
        work = [*mates(), *(Work(request, 0, True, follows=True) for request in requests)]
        ahead = launch(engine, put_together(engine, work, running.batch), running)
        for outcome in fetch(engine, running):
            if outcome.request in requests:
                _apply(outcome)
    for outcome in fetch(engine, ahead):
        if outcome.request in requests:
            _apply(outcome)


def test_a_text_is_that_of_one_step_at_a_time(engine: Engine) -> None:
    """Beside trees and chunks of prompts, which come before it in the pass."""
    expected = [decode(engine, plain(engine, seed), STEPS) for seed in range(4)]
    dice = random.Random(1)

    def mates() -> list[Work]:
        prompt, tree = plain(engine, 90), plain(engine, 91)
        tree.draft = Tree((1, 2, 3), (0, 0, 1))
        prompt.cached, prompt.draft = 0, None
        chosen = [Work(prompt, 3, verify=False), Work(tree, 0, verify=True)]
        engine.kv.free([*prompt.pages, *tree.pages])  # whoever comes next takes them
        return chosen[: dice.randrange(3)]

    requests = [plain(engine, seed) for seed in range(4)]
    overlapped(engine, requests, mates)
    assert [request.context[6:] for request in requests] == expected


def test_it_is_the_same_at_recorded_sizes(engine: Engine) -> None:
    expected = [decode(engine, plain(engine, seed), STEPS) for seed in range(3)]
    engine.record(16, 8)
    requests = [plain(engine, seed) for seed in range(3)]
    overlapped(engine, requests)
    assert [request.context[6:] for request in requests] == expected


@contextmanager
def visits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What reads values of tensors on the host, but for buffers that are filled to be sent."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "equal")):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def watched(name: str) -> Callable[..., Any]:
        whole = getattr(torch.Tensor, name)

        def call(self: Tensor, *arguments: Any, **options: Any) -> Any:
            if not (name == "numpy" and self.dtype == torch.uint8):
                seen.append(name)
            return whole(self, *arguments, **options)

        return call

    with monkeypatch.context() as patch, Watch():
        for name in TO_THE_HOST:
            patch.setattr(torch.Tensor, name, watched(name))
        yield seen


def test_between_two_steps_no_value_visits_the_host(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as the first is launched nor as the second is, whose rows need what it draws."""
    requests = [plain(engine, seed) for seed in range(3)]
    first = put_together(engine, [Work(request, 0, True) for request in requests])
    work = [Work(request, 0, True, follows=True) for request in requests]
    second = put_together(engine, work, first)
    with visits(monkeypatch) as seen:
        running = launch(engine, first, None)
        ahead = launch(engine, second, running)
        assert seen == []
        fetch(engine, running)
        assert seen == 3 * ["tolist"], "the verdicts, once"
    assert all(isinstance(outcome, Verified) for outcome in fetch(engine, ahead))


def test_a_step_is_let_go_of_when_the_outcomes_of_the_next_are_read(engine: Engine) -> None:
    """Not by the thread that settles it, for which the model waits; and none is kept for ever."""
    request = plain(engine, 0)
    last, steps = None, []
    for _ in range(4):
        work = [Work(request, 0, True, follows=last is not None)]
        before = None if last is None else last.batch
        launched = launch(engine, put_together(engine, work, before), last)
        settle(engine, launched)
        steps.append(weakref.ref(launched))
        last = launched
    del launched
    assert all(step() is not None for step in steps), "freed in the thread that settles"
    assert last is not None
    last.outcomes()
    assert [step() is None for step in steps] == [True, True, True, False]


def test_a_step_that_fails_late_is_run_again_and_so_is_what_was_queued_behind_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its download, when the next has been launched with tokens that are worth nothing."""
    expected = [decode(engine, plain(engine, seed), 3) for seed in range(3)]
    requests = [plain(engine, seed) for seed in range(3)]
    running = launch(engine, put_together(engine, [Work(r, 0, True) for r in requests]), None)
    with torch.inference_mode():
        running.drawn.fill_(7)
    work = [Work(request, 0, True, follows=True) for request in requests]
    ahead = launch(engine, put_together(engine, work, running.batch), running)

    def fail() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(running.arriving, "wait", fail)
    for launched in (running, ahead):
        for outcome in fetch(engine, launched):
            _apply(outcome)
    last = [Work(request, 0, True) for request in requests]
    for outcome in verify_batch(engine, last):
        _apply(outcome)
    assert [request.context[6:] for request in requests] == expected


def test_whose_token_cannot_be_drawn_fails_alone_and_harms_nobody_in_the_next_step(
    engine: Engine,
) -> None:
    expected = [decode(engine, plain(engine, seed), 2) for seed in range(3)]
    requests = [plain(engine, seed) for seed in range(3)]
    engine.kv.pools[0][:, :, requests[1].pages[0]] = float("nan")
    running = launch(engine, put_together(engine, [Work(r, 0, True) for r in requests]), None)
    work = [Work(request, 0, True, follows=True) for request in requests]
    ahead = launch(engine, put_together(engine, work, running.batch), running)
    first, second = fetch(engine, running), fetch(engine, ahead)
    assert isinstance(first[1], Failed)
    for index in (0, 2):
        one, two = first[index], second[index]
        assert isinstance(one, Verified)
        assert isinstance(two, Verified)
        assert [one.bonus, two.bonus] == expected[index]


class Gate(staging.Arriving):
    """Stands for a copy from a device that is done when a test says so."""

    def __init__(self, columns: tuple[Tensor, ...], over: threading.Event):
        super().__init__(columns)
        self.over = over

    @property
    def is_there(self) -> bool:
        return self.over.is_set()

    def wait(self) -> None:
        assert self.over.wait(PATIENCE_S)


def test_a_device_is_given_the_next_step_before_the_last_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is told of in order, one outcome after the other."""
    overs = [threading.Event() for _ in range(3)]
    gates = iter(overs)
    passes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(staging, "download", lambda *columns: Gate(columns, next(gates)))
    engine = StubEngine(4096, 16, lambda: passes.put(1))
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 1, ())
    pages = engine.kv.allocate(1)
    state = Request("one", params, 50, [7], admitted=True, pages=pages, turn=Turn.SERVER)
    told: queue.Queue[Job] = queue.Queue()
    thread = ModelThread(engine, deque())
    thread.start(told.put)
    jobs: list[Job] = []
    for follows in (False, True):
        work = [Work(state, 0, verify=True, follows=follows)]
        before = jobs[0].batch if follows else None
        jobs.append(Job(Step(work), put_together(engine, work, before)))
        thread.submit(jobs[-1])
        passes.get(timeout=PATIENCE_S)
        assert told.empty(), "its step is not over"
        assert not thread.withdraw(jobs[-1]), "the device has it"
    for index, over in enumerate(overs[:2]):
        over.set()
        job = told.get(timeout=PATIENCE_S)
        assert job is jobs[index]
    third = Job(Step([]), put_together(engine, []))
    thread.submit(third)
    overs[2].set()  # of a pass without trees, too, it is known when it is over
    assert told.get(timeout=PATIENCE_S) is third
    thread.stop()
    bonuses = [job.outcomes()[0].bonus for job in jobs]
    assert bonuses == [next_token(7), next_token(next_token(7))]
    first, second = (job.step for job in jobs)
    assert first.end_s <= second.start_s, "queued behind it, it began when that was over"


def test_a_stop_waits_for_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    passes: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(staging, "download", lambda *columns: Gate(columns, over))
    engine = StubEngine(4096, 16, lambda: passes.put(1))
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 1, ())
    state = Request("one", params, 50, [7], admitted=True, pages=engine.kv.allocate(1))
    told: queue.Queue[Job] = queue.Queue()
    thread = ModelThread(engine, deque())
    thread.start(told.put)
    work = [Work(state, 0, verify=True)]
    thread.submit(Job(Step(work), put_together(engine, work)))
    passes.get(timeout=PATIENCE_S)
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    assert told.empty()
    over.set()
    stopping.join()
    assert told.get_nowait().outcomes() == [Verified(state, [0], next_token(7))]
