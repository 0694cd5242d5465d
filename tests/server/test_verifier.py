"""One step over several sessions: a bad one fails alone, and its mates do not feel it."""

from pathlib import Path

import pytest
import torch

from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.server.scheduler import Work
from runtime.server.session import Session
from runtime.server.verifier import Failed, Outcome, Prefilled, Verified, verify_batch
from runtime.tree import Tree
from runtime.wire.messages import Open


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: 1024, 16)


def sessions(engine: Engine, count: int) -> list[Session]:
    """Prompts of different lengths, drafts of different shapes."""
    result = []
    for number in range(count):
        prompt = [(7 * number + i) % 200 for i in range(3 + 5 * number)]
        params = Open(number + 1, number, 1.0, 1.0, 0.0, 0, 20, len(prompt), ())
        session = Session(number, params, limit=len(prompt) + 20, context=prompt)
        session.pages = engine.kv.allocate(5)
        nodes = range(2 * number)
        session.draft = Tree(tuple(n + 1 for n in nodes), tuple(n // 2 for n in nodes))
        result.append(session)
    return result


def work(session: Session) -> Work:
    return Work(session, chunk=session.uncached, verify=True)


def verdict(outcomes: list[Outcome], session: Session) -> tuple[object, ...]:
    """What happened to one session, comparable."""
    for outcome in outcomes:
        if outcome.session is session and isinstance(outcome, Verified):
            return ("verified", outcome.path, outcome.bonus)
        if outcome.session is session and isinstance(outcome, Failed):
            return ("failed", outcome.sentence)
    raise AssertionError(f"no outcome for {session.key}")


def test_a_batch_equals_its_sessions_alone(engine: Engine) -> None:
    """Verdicts and the KV that is left are the same to the last bit."""
    alone = sessions(engine, 4)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in alone]
    kept = [engine.kv.kv[:, :, s.pages].flatten(2, 3) for s in alone]
    together = sessions(engine, 4)
    outcomes = verify_batch(engine, [work(s) for s in together])
    assert [verdict(outcomes, s) for s in together] == expected
    for session, before, (_, path, _) in zip(together, kept, expected, strict=True):
        now = engine.kv.kv[:, :, session.pages].flatten(2, 3)
        count = session.root + len(path)
        assert torch.equal(now[:, :, :count], before[:, :, :count])


def test_prefilled_tokens_are_reported(engine: Engine) -> None:
    session = sessions(engine, 3)[2]
    assert verify_batch(engine, [Work(session, 5, False)]) == [Prefilled(session, 5)]


def test_a_poisoned_session_fails_alone(engine: Engine) -> None:
    clean = sessions(engine, 4)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in clean]
    batch = sessions(engine, 4)
    for session in batch:
        verify_batch(engine, [Work(session, session.uncached, False)])
        session.cached = session.root
    engine.kv.kv[:, :, batch[2].pages[0]] = float("nan")
    outcomes = verify_batch(engine, [work(s) for s in batch])
    assert verdict(outcomes, batch[2])[0] == "failed"
    assert "no valid probabilities" in str(verdict(outcomes, batch[2])[1])
    for index in (0, 1, 3):
        assert verdict(outcomes, batch[index]) == expected[index]


def test_a_session_that_raises_fails_alone(engine: Engine) -> None:
    """A token that the model does not have cannot come over the wire, but our own bug might."""
    clean = sessions(engine, 3)
    expected = [verdict(verify_batch(engine, [work(s)]), s) for s in clean]
    batch = sessions(engine, 3)
    batch[1].context[0] = 10_000
    outcomes = verify_batch(engine, [work(s) for s in batch])
    kind, sentence = verdict(outcomes, batch[1])
    assert kind == "failed"
    assert "10000" in str(sentence)
    for index in (0, 2):
        assert verdict(outcomes, batch[index]) == expected[index]
