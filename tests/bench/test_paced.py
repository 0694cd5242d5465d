"""Devices of a stated speed: the product's own passes and steps, no faster than was said."""

from pathlib import Path

import pytest
from torch import Tensor

from runtime.bench import device
from runtime.bench.device import PacedDrafts, PacedTarget
from runtime.bench.records import Span
from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify import verifier
from runtime.server.verify.verifier import Verified, verify_batch
from runtime.tree import Tree
from runtime.wire.messages import Open

PASS_S, STEP_S, DRAWING_S = 0.5, 8.0, 2.0
PROMPT = [3, 5, 7, 11]
DRAFT = Tree((13, 17, 13, 19), (0, 0, 1, 2))


class Clock:
    """Stands in for `time`: it goes on while somebody sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(device, "time", clock)
    return clock


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[0]), "float32", "cpu", lambda _: 256, 16)


def walk(engine: Engine, verify: bool = True) -> list[tuple[list[int], int]]:
    """What a step of the prompt, and of its draft if told so, brings."""
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 8, len(PROMPT), ())
    request = Request(1, params, 32, list(PROMPT), pages=engine.kv.allocate(1), draft=DRAFT)
    outcomes = verify_batch(engine, [Work(request, request.uncached, verify)])
    walks = [(one.path, one.bonus) for one in outcomes if isinstance(one, Verified)]
    assert len(walks) == verify
    return walks


def test_a_step_brings_the_same_and_takes_its_time(engine: Engine, clock: Clock) -> None:
    start_s, paced = clock.now_s, PacedTarget(engine, STEP_S)
    assert walk(paced) == walk(engine)
    assert clock.now_s == start_s + STEP_S
    walk(paced, verify=False)
    assert clock.now_s == start_s + 2 * STEP_S, "a step that only reads a prompt is one too"


def test_what_drawing_takes_is_part_of_the_step(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = verifier.target_tokens

    def slow(*args: Tensor, **more: Tensor) -> Tensor:
        clock.sleep(DRAWING_S)
        return draw(*args, **more)

    monkeypatch.setattr(verifier, "target_tokens", slow)
    start_s = clock.now_s
    walk(PacedTarget(engine, STEP_S))
    assert clock.now_s == start_s + STEP_S


def test_a_run_of_the_draft_brings_the_same_tree_and_takes_its_time(engine: Engine) -> None:
    spans: list[Span] = []
    alone, paced = Drafter(engine), PacedDrafts(Drafter(engine), PASS_S, spans)
    shape = TreeShape(max_budget=6, max_n_beams=3, max_beam_len=3, max_branch_width=3)
    trees = []
    for drafts in (alone, paced):
        about = Noise(0, 0.0), drafts.vocabulary_size
        speculation = Speculation(list(PROMPT), 32, shape, Proactive.OFF, *about)
        runs = 0
        while frontier := speculation.frontier(6):
            assert drafts.run([Pass(speculation, frontier)]) == [True]
            runs += 1
        trees.append(speculation.send(6))
    assert trees[0] == trees[1]
    assert len(spans) == runs, "one span for each run, and none for those that are not paced"
    assert all(end_s == start_s + PASS_S for start_s, end_s in spans)
