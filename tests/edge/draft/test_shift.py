"""What is done to a draft's logits against the rule in plain numbers, token by token."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.edge.draft.mixture import shift
from runtime.edge.draft.speculation import Edits

TOKENS = st.lists(st.integers(0, 30), max_size=12)
VALUES = st.floats(-2, 2, width=32)


@given(
    prompt=TOKENS,
    output=TOKENS,
    path=TOKENS,
    numbers=st.tuples(VALUES, VALUES, st.sampled_from([0.5, 1.0, 1.5])),
    bias=st.dictionaries(st.integers(0, 30), st.floats(-100, 100, width=32), max_size=4),
    head=st.sets(st.integers(0, 30), min_size=1),
    seed=st.integers(0, 99),
)
def test_a_shift_is_what_the_rule_says(prompt, output, path, numbers, bias, head, seed) -> None:
    token_ids = torch.tensor(sorted(head))
    logits = torch.randn(len(head), generator=torch.Generator().manual_seed(seed)) * 5
    frequency, presence, repetition = numbers
    edits = Edits(*numbers, tuple(bias.items()))
    got = logits + shift(
        edits, edits.history([*prompt, *output], len(output)), path, logits, token_ids
    )
    text, counts = {*prompt, *output, *path}, Counter([*output, *path])
    for column, token in enumerate(sorted(head)):
        x = float(logits[column]) + bias.get(token, 0.0)
        if token in text:
            x = x / repetition if x > 0 else x * repetition
        if counts[token]:
            x -= frequency * counts[token] + presence
        assert float(got[column]) == pytest.approx(x, abs=1e-3)


def test_nothing_is_looked_at_that_nothing_depends_on() -> None:
    assert Edits(bias=((1, 2.0),)).history([1, 2], 1) is None
    assert list(Edits(presence=1.0).history([1, 2, 3], 1).tokens) == [3]
    assert list(Edits(repetition=1.5).history([1, 2, 3], 1).tokens) == [1, 2, 3]
