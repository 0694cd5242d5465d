"""Steps before the first request: they are measured as they are, and leave nothing behind."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.model.engine import Engine
from runtime.model.open import open_engine
from runtime.model.weights import ModelError
from runtime.server.schedule.step import Work
from runtime.server.verify import warm_up as warm_up_module
from runtime.server.verify.verifier import Outcome, put_together, verify_batch
from runtime.server.verify.warm_up import ROWS, warm_up


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: 256, 16)


def test_the_pool_is_whole_afterwards(engine: Engine) -> None:
    costs = warm_up(engine, most_rows=512, most_trees=4)
    assert tuple(rows for rows, _ in costs) == ROWS
    assert all(seconds > 0 for _, seconds in costs)
    assert engine.kv.n_free == engine.kv.n_pages


def test_no_step_is_larger_than_the_server_allows(engine: Engine) -> None:
    assert [rows for rows, _ in warm_up(engine, most_rows=20, most_trees=4)] == [1, 4, 16]


def test_a_small_pool_is_enough(tiny_pair: tuple[Path, Path]) -> None:
    engine = open_engine(str(tiny_pair[0]), "float32", "cpu", lambda model: 16, 16)
    assert [rows for rows, _ in warm_up(engine, most_rows=512, most_trees=4)] == [1, 4, 16]


def test_a_model_that_fails_is_reported_before_anyone_asks(engine: Engine) -> None:
    engine.model.norm.fill_(float("nan"))
    with pytest.raises(ModelError, match="cannot verify 1 rows"):
        warm_up(engine, most_rows=512, most_trees=4)


def test_one_step_runs_what_few_requests_want(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU compiles it before the port opens."""
    pages, seen = engine.kv.allocate(1), list[set[str]]()

    def verify(engine: Engine, work: Sequence[Work]) -> list[Outcome]:
        seen.append(set(put_together(engine, work).tensors))
        return verify_batch(engine, work)

    monkeypatch.setattr(warm_up_module, "verify_batch", verify)
    assert warm_up_module._step_s(engine, pages, 4, wants_all=True) > 0
    assert seen == [{"rows", "columns", "edits", "masks", "logprobs"}]
