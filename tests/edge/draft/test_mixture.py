"""Prompt lookup against a search through the whole text, and mixtures that stay distributions."""

import math
import random

import pytest
import torch

from runtime.edge.draft.mixture import changed, mix
from runtime.edge.draft.shares import WEIGHTS, shares
from runtime.edge.draft.suffixes import MOST_PLACES, Suffixes


def brute_force(text: list[int], path: list[int]) -> dict[int, float]:
    """Of the places behind the last one and the last two tokens the latest ones count."""
    whole = [*text, *path]
    for n in sorted(WEIGHTS, reverse=True):
        places = [i + n for i in range(len(text) - n) if text[i : i + n] == whole[-n:]]
        same_pair = [i for i in range(2, len(text)) if text[i - 2 : i] == whole[-2:]]
        same_last = [i for i in range(1, len(text)) if text[i - 1] == whole[-1]]
        among = {*same_pair[-MOST_PLACES:], *same_last[-MOST_PLACES:]}
        seen = [text[place] for place in places if place in among]
        if seen and len(whole) >= n:
            return {t: WEIGHTS[n] * seen.count(t) / len(seen) for t in set(seen)}
    return {}


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_match_decides(seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(4) for _ in range(rng.randint(0, 60))]
    suffixes = Suffixes()
    cut = rng.randint(0, len(text))
    suffixes.extend(text[:cut])
    suffixes.extend(text[cut:])
    for _ in range(20):
        path = [rng.randrange(5) for _ in range(rng.randint(0, 5))]
        assert shares(suffixes, [*text, *path]) == pytest.approx(brute_force(text, path))


@pytest.mark.parametrize("seed", range(10))
def test_a_text_that_is_cut_is_as_if_its_end_had_never_been(seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(3) for _ in range(40)]
    longer, shorter = Suffixes(), Suffixes()
    longer.extend(text)
    for _ in range(4):
        length = rng.randint(0, len(longer))
        longer.cut(length)
        text = [*text[:length], *(rng.randrange(3) for _ in range(rng.randint(0, 9)))]
        longer.extend(text[length:])
        shorter = Suffixes()
        shorter.extend(text)
        for tail in ([0], [1], [2], *([a, b] for a in range(3) for b in range(3))):
            assert longer.followers(tail) == shorter.followers(tail)


@pytest.mark.parametrize("seed", range(10))
def test_a_mixture_is_a_distribution_over_more_tokens(seed: int) -> None:
    rng = random.Random(seed)
    head = rng.sample(range(100), 30)
    weights = [rng.random() for _ in head]
    own = {token: w / sum(weights) for token, w in zip(head, weights, strict=True)}
    found = {token: 0.9 * rng.random() / 5 for token in rng.sample(range(100), 5)}
    mixed = mix({token: math.log(p) for token, p in own.items()}, found)
    rest = 1 - sum(found.values())
    expected = {t: rest * own.get(t, 0.0) + found.get(t, 0.0) for t in {*own, *found}}
    assert {token: math.exp(score) for token, score in mixed} == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(mixed) == len(expected)
    scores = [score for _, score in mixed]
    assert scores == sorted(scores, reverse=True)


def test_nothing_found_changes_nothing() -> None:
    own = {7: math.log(0.6), 3: math.log(0.3)}
    assert dict(mix(own, {})) == pytest.approx(own)
    assert mix({}, {}) == []
    assert [token for token, _ in mix({}, {5: 0.1, 6: 0.2})] == [6, 5]


@pytest.mark.parametrize("seed", range(10))
def test_changed_shares_are_those_of_the_changed_distribution(seed: int) -> None:
    """Of one that has the shares and leaves the rest to tokens that are not changed."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    head = torch.tensor(sorted(rng.sample(range(100), 30)))
    found = dict.fromkeys(rng.sample(range(100), 5), 0.17)
    change = 3 * torch.randn(30, generator=generator)
    by_token = dict(zip(head.tolist(), change.tolist(), strict=True))
    logits = [math.log(p) + by_token.get(t, 0.0) for t, p in found.items()]
    expected = torch.tensor([*logits, math.log(1 - sum(found.values()))]).softmax(0)[:-1]
    assert [*changed(found, change, head).values()] == pytest.approx(expected.tolist(), rel=1e-4)
    assert changed({}, change, head) == {}
