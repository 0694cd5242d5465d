"""Prompt lookup against a search through the whole text, and mixtures that stay distributions."""

import random
import tracemalloc

import pytest
import torch

from runtime.edge.draft.lookup import WEIGHTS, Lookup
from runtime.edge.draft.mixture import mix


def brute_force(text: list[int], path: list[int]) -> dict[int, float]:
    whole = [*text, *path]
    for n in sorted(WEIGHTS, reverse=True):
        seen = [text[i + n] for i in range(len(text) - n) if text[i : i + n] == whole[-n:]]
        if seen and len(whole) >= n:
            return {t: WEIGHTS[n] * seen.count(t) / len(seen) for t in set(seen)}
    return {}


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_match_decides(seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(4) for _ in range(rng.randint(0, 60))]
    lookup = Lookup()
    cut = rng.randint(0, len(text))
    lookup.extend(text[:cut])
    lookup.extend(text[cut:])
    for _ in range(20):
        path = [rng.randrange(5) for _ in range(rng.randint(0, 5))]
        assert lookup.next_tokens(path) == pytest.approx(brute_force(text, path))


def test_a_long_text_is_kept_in_eight_bytes_a_token_and_needs_no_building() -> None:
    text = [i * 7919 % 50_000 for i in range(131_072)]
    tracemalloc.start()
    lookup = Lookup()
    lookup.extend(text)
    lookup.extend([1, 2, 3])
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 9 * len(text)
    assert lookup.next_tokens([*text[40:42]]) == pytest.approx(brute_force(text, [*text[40:42]]))


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
