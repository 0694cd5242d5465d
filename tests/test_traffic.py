"""What a step and a pass of a draft send to a GPU and bring back, on one that is not there.

One copy each way, for which nobody waits as it is queued.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.history import History
from runtime.model import staging, weights
from runtime.model.engine import Engine
from runtime.model.graphs import sizes_to_record
from runtime.model.kv_cache import PagedKV
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import Launched, launch, put_together
from runtime.server.verify.warm_up import AnyToken
from runtime.tree import ROOT, Tree
from runtime.wire.messages import Open, Rule
from tests.fake_gpu import DEVICE, FakeGpu, fake_gpu

VOCABULARY = 260
PLAIN = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 6, ())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    with fake_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def engine(gpu: FakeGpu, tiny_pair: tuple[Path, Path]) -> Engine:
    with gpu.running():
        model = weights.load(tiny_pair[0], "bfloat16", DEVICE)
        engine = Engine(model, PagedKV(model.kv_shapes, 256, 16, model.dtype, DEVICE))
    gpu.crossed.clear()
    return engine


def plain(engine: Engine, params: Open = PLAIN) -> Request:
    request = Request("one", params, 60, list(range(6)), admitted=True)
    request.pages, request.cached = engine.kv.allocate(4), 5
    return request


def drafted(engine: Engine, params: Open = PLAIN) -> Request:
    request = plain(engine, params)
    request.draft = Tree(tuple(range(10)), tuple(node // 2 for node in range(10)))
    return request


def ruled(engine: Engine) -> Request:
    request = drafted(engine)
    request.rule = Rule(1, 1.1, 0.5, 0.5, (3, 4), (1.0, -1.0))
    request.history = History(request.context, ())
    return request


def constrained(engine: Engine) -> Request:
    request = drafted(engine)
    request.guide = AnyToken(VOCABULARY)
    return request


def sampled(engine: Engine) -> Request:
    return drafted(engine, replace(PLAIN, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1))


def told(engine: Engine) -> Request:
    return drafted(engine, replace(PLAIN, logprobs=3))


def verify(request: Request) -> Work:
    return Work(request, 0, verify=True)


def prompt(engine: Engine) -> Work:
    request = plain(engine)
    request.cached = 0
    return Work(request, 4, verify=False)


def run(gpu: FakeGpu, engine: Engine, work: list[Work], before: Launched | None = None) -> Launched:
    with gpu.running():
        batch = put_together(engine, work, before and before.batch)
        launched = launch(engine, batch, before)
    if launched.fault is not None:
        raise launched.fault
    return launched


KINDS = [plain, drafted, ruled, constrained, sampled, told]


def test_a_step_sends_one_buffer_and_brings_one_back(gpu, engine):
    """Whatever its requests want, alone or together, and what follows them."""
    for kind in KINDS:
        run(gpu, engine, [verify(kind(engine))])
        assert (kind, gpu.crossed) == (kind, ["up", "down"])
        gpu.crossed.clear()
    requests = [kind(engine) for kind in KINDS]
    first = run(gpu, engine, [prompt(engine), *map(verify, requests)])
    follows = Work(requests[0], 0, verify=True, follows=True)
    second = run(gpu, engine, [prompt(engine), follows, verify(drafted(engine))], first)
    run(gpu, engine, [prompt(engine), prompt(engine)], second)
    assert gpu.crossed == 3 * ["up", "down"]


def test_a_step_at_a_recorded_size_is_one_replay(gpu, engine):
    """Of a pass that was recorded on the device's own streams; a longer prompt runs as it is."""
    with gpu.running():
        engine.record(rows=16, requests=4)
    assert gpu.graphs == len(sizes_to_record(16, 5, 256, 1000))
    gpu.crossed.clear()
    run(gpu, engine, [verify(drafted(engine)), prompt(engine)])
    assert (gpu.replays, gpu.crossed) == (1, ["up", "down"])
    run(gpu, engine, [verify(drafted(engine)), verify(drafted(engine))])
    assert (gpu.replays, gpu.crossed) == (1, 2 * ["up", "down"])


def test_a_pass_of_a_draft_sends_one_buffer_and_brings_one_back(gpu, engine, monkeypatch):
    """Of text, and then of a node, for a target that has fewer tokens."""
    with gpu.running():
        drafter = Drafter(engine)
    # there are no numbers
    rows = np.zeros((1, 4), np.int64), np.zeros((1, 4))
    monkeypatch.setattr(staging.Arriving, "wait", lambda self: None)
    monkeypatch.setattr(staging.Arriving, "columns", lambda self: rows)
    monkeypatch.setattr(drafter, "_known", {VOCABULARY - 4: VOCABULARY - 4})
    speculation = Speculation(
        list(range(6)), 40, TreeShape(8, 4, 2, 4), Proactive.OFF, Noise(1, 0.7), VOCABULARY - 4
    )
    gpu.crossed.clear()
    for frontier in ([ROOT], [1]):
        with gpu.running():
            assert drafter.run([Pass(speculation, frontier)]) == [True]
        assert gpu.crossed == ["up", "down"]
        gpu.crossed.clear()


def test_a_page_that_is_kept_elsewhere_is_waited_for_by_nobody(gpu, engine):
    """Until its bytes are wanted."""
    with gpu.running():
        copy = engine.kv.copy_out(3)
        engine.kv.copy_in(copy, 5)
    assert gpu.crossed == ["down", "up"]
    assert gpu.streams == [DEVICE]


def test_it_is_waited_for_on_the_stream_of_its_device(gpu, engine):
    """Which is not that of the current one, where nothing is queued that it could be behind."""
    run(gpu, engine, [verify(plain(engine))])
    assert gpu.streams == [DEVICE]
