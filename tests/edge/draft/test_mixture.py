"""Prompt lookup against a search through the whole text, and mixtures that stay distributions."""

import random

import pytest
import torch

from runtime.edge.draft.mixture import mix
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
    generator = torch.Generator().manual_seed(seed)
    head = torch.tensor(sorted(rng.sample(range(100), 30)))
    logits = 3 * torch.randn(4, 30, generator=generator)
    shares = [
        dict.fromkeys(rng.sample(range(100), 5), 0.9 / 5) if row != 2 else {} for row in range(4)
    ]
    log_p, ids = mix(logits, head, shares)
    assert len(set(ids.tolist())) == len(ids)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(4))
    for row, row_shares in enumerate(shares):
        own = dict(zip(head.tolist(), logits[row].softmax(-1).tolist(), strict=True))
        rest = 1 - sum(row_shares.values())
        for column, token in enumerate(ids.tolist()):
            expected = rest * own.get(token, 0.0) + row_shares.get(token, 0.0)
            assert float(log_p[row, column].exp()) == pytest.approx(expected, rel=1e-4)


def test_nothing_found_changes_nothing() -> None:
    logits, ids = torch.randn(2, 5), torch.arange(5)
    mixed, same = mix(logits, ids, [{}, {}])
    assert mixed is logits
    assert same is ids
