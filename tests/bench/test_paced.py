"""A device of a stated speed: the product's own passes, no faster than was said."""

from pathlib import Path

import torch

from runtime.bench.device import PacedEngine
from runtime.bench.records import Span
from runtime.model.engine import TreeRequest
from runtime.model.open import open_engine

PASS_S = 0.02


def test_a_paced_pass_has_the_same_logits_and_is_never_faster(tiny_pair: tuple[Path, Path]) -> None:
    engine = open_engine(str(tiny_pair[0]), "float32", "cpu", lambda _: 256, 16)
    spans: list[Span] = []
    paced = PacedEngine(engine, PASS_S, spans)
    request = TreeRequest([3, 5, 7, 11], [-1, 0, 0, 1], 0, engine.kv.allocate(1), range(4))
    plain = engine.forward([request])
    assert torch.equal(paced.forward([request]), plain)
    assert torch.equal(paced.forward([request]), plain)
    assert len(spans) == 2, "one span for each pass, and none for those of the engine itself"
    assert all(end_s - start_s >= PASS_S for start_s, end_s in spans)
    assert spans[1][0] >= spans[0][1]
