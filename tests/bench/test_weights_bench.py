"""The bench of weights: one pass says what decoding in another way would have said."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench.weights import Text, chain, greedy, opened, tally
from runtime.model.engine import Engine

PROMPT = list(b"What do the weights say?")


@pytest.fixture(scope="module")
def truth(tiny_pair: tuple[Path, Path]) -> Engine:
    return opened("float32,exact", str(tiny_pair[0]))


@pytest.fixture(scope="module")
def text(truth: Engine) -> Text:
    return Text(PROMPT, greedy(truth, PROMPT, 60, frozenset()))


@pytest.mark.parametrize("way", ["q8_0,rounded", "q4_0,exact"])
def test_texts_agree_as_long_as_one_pass_says(
    way: str, text: Text, truth: Engine, tiny_pair: tuple[Path, Path]
) -> None:
    other = opened(way, str(tiny_pair[0]))
    own = greedy(other, PROMPT, 60, frozenset())
    agreed = [a == b for a, b in zip(own, text.answer, strict=True)]
    total = tally(other, [text, text], truth)
    assert not all(agreed)
    assert total.different == 2
    assert total.compared == 2 * (agreed.index(False) + 1)


def test_divergence_and_perplexity_against_float64(
    text: Text, truth: Engine, tiny_pair: tuple[Path, Path]
) -> None:
    other = opened("q5_0,rounded", str(tiny_pair[0]))
    tokens = PROMPT + text.answer
    want, got = (
        engine.forward([chain(tokens, 0, range(len(tokens)))])[:-1].double().log_softmax(-1)
        for engine in (truth, other)
    )
    total = tally(other, [text], truth)
    assert total.read == len(tokens) - 1
    assert total.divergence == pytest.approx(float((want.exp() * (want - got)).sum()), rel=1e-3)
    losses = [-float(got[i, after]) for i, (_, after) in enumerate(pairwise(PROMPT))]
    assert total.perplexity == pytest.approx(float(torch.tensor(losses).mean().exp()), rel=1e-4)
    alone = tally(truth, [text], truth)
    assert abs(alone.divergence) < 1e-3
    assert (alone.different, alone.compared) == (0, 60)
