"""One step over several requests: a bad one fails alone, and its mates do not feel it."""

from pathlib import Path

import pytest
import torch

from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from runtime.server.verify.verifier import (
    Failed,
    Outcome,
    Verified,
    verify_batch,
)
from runtime.tree import Tree
from runtime.wire.messages import Open


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[0]), "float32", "auto", lambda model: 1024, 16)


def requests(engine: Engine, count: int) -> list[Request]:
    """Prompts of different lengths, drafts of different shapes."""
    result = []
    for number in range(count):
        prompt = [(7 * number + i) % 200 for i in range(3 + 5 * number)]
        params = Open(number + 1, number, 1.0, 1.0, 0.0, 0, 20, len(prompt), ())
        request = Request(number, params, limit=len(prompt) + 20, context=prompt)
        request.pages = engine.kv.allocate(5)
        nodes = range(2 * number)
        request.draft = Tree(tuple(n + 1 for n in nodes), tuple(n // 2 for n in nodes))
        result.append(request)
    return result


def work(request: Request) -> Work:
    return Work(request, chunk=request.uncached, verify=True)


def verdict(outcomes: list[Outcome], request: Request) -> tuple[object, ...]:
    """What happened to one request, comparable."""
    for outcome in outcomes:
        if outcome.request is request and isinstance(outcome, Verified):
            return ("verified", outcome.path, outcome.bonus)
        if outcome.request is request and isinstance(outcome, Failed):
            return ("failed", outcome.sentence)
    raise AssertionError(f"no outcome for {request.key}")


def test_a_batch_equals_its_requests_alone(engine: Engine) -> None:
    """Verdicts and the KV that is left are the same to the last bit."""
    alone = requests(engine, 4)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in alone]
    kept = [engine.kv.pools[0][:, :, s.pages].flatten(2, 3) for s in alone]
    together = requests(engine, 4)
    outcomes = verify_batch(engine, [work(s) for s in together])
    assert [verdict(outcomes, s) for s in together] == expected
    for request, before, (_, path, _) in zip(together, kept, expected, strict=True):
        now = engine.kv.pools[0][:, :, request.pages].flatten(2, 3)
        count = request.root + len(path)
        assert torch.equal(now[:, :, :count], before[:, :, :count])


def test_a_chunk_has_no_outcome_unless_it_fails(engine: Engine) -> None:
    request = requests(engine, 3)[2]
    assert verify_batch(engine, [Work(request, 5, False)]) == []
    request.context[2] = 10_000
    (failed,) = verify_batch(engine, [Work(request, 5, False)])
    assert isinstance(failed, Failed)


def test_a_poisoned_request_fails_alone(engine: Engine) -> None:
    clean = requests(engine, 4)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in clean]
    batch = requests(engine, 4)
    for request in batch:
        verify_batch(engine, [Work(request, request.uncached, False)])
        request.cached = request.root
    engine.kv.pools[0][:, :, batch[2].pages[0]] = float("nan")
    outcomes = verify_batch(engine, [work(s) for s in batch])
    assert verdict(outcomes, batch[2])[0] == "failed"
    assert "no valid probabilities" in str(verdict(outcomes, batch[2])[1])
    for index in (0, 1, 3):
        assert verdict(outcomes, batch[index]) == expected[index]


def test_a_request_that_raises_fails_alone(engine: Engine) -> None:
    """A token that the model does not have cannot come over the wire, but our own bug might."""
    clean = requests(engine, 3)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in clean]
    batch = requests(engine, 3)
    batch[1].context[0] = 10_000
    outcomes = verify_batch(engine, [work(s) for s in batch])
    kind, sentence = verdict(outcomes, batch[1])
    assert kind == "failed"
    assert "10000" in str(sentence)
    for index in (0, 2):
        assert verdict(outcomes, batch[index]) == expected[index]
