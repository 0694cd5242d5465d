"""The noise that tokens are drawn with, against float64, and on every instruction set."""

import math

import numpy as np
import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.hashes import EXTREMES, exact_noise, hash_of, hashes_everywhere, positions_for

VOCABULARY = 152_064


def noise_of(hashes):
    """The reference's noise of unsigned hashes, as numpy."""
    return reference.gumbel_of(torch.from_numpy(hashes.view(np.int64))).numpy()


def whole(rows, temperature=1.0):
    """Temperature and limits that allow every token."""
    zeros = torch.zeros(rows)
    return torch.full((rows,), temperature), zeros.int(), zeros + 1, zeros


def signed(words):
    return torch.from_numpy(words.view(np.int64))


def last_with(condition, rows):
    """The last hash, by halving, of those from 0 on for which a condition of hashes holds."""
    low, high = np.zeros(rows, np.uint64), np.full(rows, 2**64 - 1, np.uint64)
    for _ in range(64):
        middle = low + ((high - low) >> np.uint64(1)) + ((high - low) & np.uint64(1))
        holds = condition(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle - np.uint64(1))
        high = np.maximum(low, high)
    return low


def test_the_noise_is_right_at_both_ends_and_between():
    hashes = hashes_everywhere(300_000, np.random.default_rng(1))
    got, want = noise_of(hashes), exact_noise(hashes)
    assert np.isfinite(got).all()
    assert got.min() < -3.79
    assert got.max() > 44.36
    assert (np.abs(got - want) < 6e-7 + 2.0**-23 * np.abs(want)).all()


def test_seeds_positions_and_tokens_of_all_sizes_are_hashed_alike():
    edges = torch.tensor([0, 1, 151_935, 2**31, 2**62, 2**63 - 1, -1, -(2**63)])
    for seed in edges.tolist():
        for position in edges.tolist():
            words = [
                np.array(x).astype(np.int64).view(np.uint64)
                for x in (np.full(len(edges), seed), np.full(len(edges), position), edges.numpy())
            ]
            want = noise_of(hash_of(*words))
            assert np.array_equal(reference.gumbel(seed, position, edges).numpy(), want)


def test_the_share_of_hashes_above_a_value_is_its_probability():
    """Over all 2^64 hashes: the noise falls with the hash, so halving finds the border."""
    values = np.arange(-3.75, 40, 0.25, dtype=np.float32)
    border = last_with(lambda hashes: noise_of(hashes) > values, len(values))
    share = (border.astype(np.float64) + 1) * 2.0**-64
    want = -np.expm1(-np.exp(-values.astype(np.float64)))
    np.testing.assert_allclose(share, want, rtol=1e-5, atol=2.0**-63)  # two hashes


def test_equal_tokens_share_the_greatest_noise_in_less_than_one_draw_of_a_million():
    """The greatest noise is drawn, the chance that any other token reaches it is computed."""
    uniform = (np.arange(20_000) + np.random.default_rng(2).random(20_000)) / 20_000
    least = -np.expm1(np.log1p(-uniform) / VOCABULARY)  # of as many v
    hashes = (least * 2.0**64).astype(np.uint64)
    greatest = noise_of(hashes)
    equal = last_with(lambda others: noise_of(others) >= greatest, len(hashes)) - hashes
    chance = -np.expm1((VOCABULARY - 1) * np.log1p(-equal.astype(np.float64) * 2.0**-64))
    assert 1e-7 < chance.mean() < 1e-6


def near_ties(n, seed):
    """Rows of two tokens, one with a chosen hash, whose scores are equal or next to it.

    Returns logits [N, 37], seeds, positions, and the columns that win.
    """
    rng = np.random.default_rng(seed)
    hashes = np.repeat(hashes_everywhere(n, rng), 3)
    rows, width = len(hashes), 37
    first = np.arange(rows) % width
    second = (first + rng.integers(1, width, rows)) % width
    columns = np.stack([first, second], 1)
    seeds = rng.integers(0, 2**64, rows, dtype=np.uint64)
    positions = positions_for(hashes, seeds, first.astype(np.uint64))
    other = hash_of(seeds, positions, second.astype(np.uint64))
    assert np.array_equal(hash_of(seeds, positions, first.astype(np.uint64)), hashes)
    noise = np.stack([noise_of(hashes), noise_of(other)], 1)
    high, low = noise.max(1), noise.min(1)
    gap = low - high
    gap[1::3] = np.nextafter(gap[1::3], np.float32(-np.inf))
    gap[2::3] = np.minimum(np.nextafter(gap[2::3], np.float32(0)), 0)
    is_first = noise[:, 0] == high
    high_column, low_column = np.where(is_first, first, second), np.where(is_first, second, first)
    score = gap + high
    wins = (score > low) | ((score == low) & (high_column < low_column))
    logits = np.full((rows, width), -np.inf, np.float32)
    np.put_along_axis(logits, high_column[:, None], gap[:, None], 1)
    np.put_along_axis(logits, low_column[:, None], np.float32(0), 1)
    assert (np.isfinite(logits).sum(1) == 2).all()
    assert {0, 1} <= set((columns == np.where(wins, high_column, low_column)[:, None]).argmax(1))
    return (
        torch.from_numpy(logits),
        signed(seeds),
        signed(positions),
        torch.from_numpy(np.where(wins, high_column, low_column)),
    )


def test_draws_are_decided_by_the_last_bits_of_the_noise():
    """One unit in the last place of any noise, from one end to the other, would change a winner."""
    logits, seeds, positions, wins = near_ties(30_000, 3)
    got = kernels.target_tokens(logits, *whole(len(logits)), seeds, positions)
    assert torch.equal(got, wins)


@pytest.mark.parametrize("with_ids", [False, True])
def test_drafts_are_decided_by_the_same_bits(with_ids):
    logits, seeds, positions, wins = near_ties(10_000, 4)
    ids = torch.arange(37) if with_ids else None
    got, _ = kernels.draft_topk(logits, 1, torch.ones(len(logits)), seeds, positions, ids)
    assert torch.equal(got[:, 0], wins)


@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (9, 1.0, 0.0), (0, 1.0, 1e-30)])
def test_bits_at_either_end_lift_a_token_from_as_far_below_as_it_goes(limits):
    """Tokens that are passed over because they cannot win are those that cannot."""
    rows, width = len(EXTREMES), 50
    hashes, rng = np.array(EXTREMES, np.uint64), np.random.default_rng(5)
    token = rng.integers(1, width, rows)
    seeds = rng.integers(0, 2**64, rows, dtype=np.uint64)
    positions = positions_for(hashes, seeds, token.astype(np.uint64))
    logits = torch.full((rows, width), -60.0)
    logits[:, 0] = 100
    lead = noise_of(hash_of(seeds, positions, np.zeros(rows, np.uint64)))
    depth = noise_of(hashes) - lead
    for over, winner in ((-1e-4, 0), (1e-4, 1)):
        is_below = depth - over > 0
        logits[torch.arange(rows), torch.from_numpy(token)] = torch.from_numpy(100 - depth + over)
        top_k, top_p, min_p = (torch.full((rows,), x) for x in limits)
        arguments = (torch.ones(rows), top_k.int(), top_p, min_p, signed(seeds), signed(positions))
        got = kernels.target_tokens(logits, *arguments)[is_below]
        assert is_below.sum() > 100
        assert torch.equal(got, torch.from_numpy(token[is_below] * winner))


@pytest.mark.parametrize("depth", [5, 12, 17, 19, 22, 25])
def test_a_token_far_below_the_best_is_drawn_as_often_as_its_probability(depth):
    """To 1 %. Only hashes with which it may win are drawn, in strata, and count as their share.

    Beyond 8 e^-depth of -log(1 - v) it wins in e^-8 of its wins.
    """
    rows, rng = 400_000, np.random.default_rng(depth)
    t = 8 * (np.arange(rows) + rng.random(rows)) / rows
    hashes = (-np.expm1(-t * math.exp(-depth)) * 2.0**64).astype(np.uint64)
    seeds = rng.integers(0, 2**64, rows, dtype=np.uint64)
    positions = positions_for(hashes, seeds, np.zeros(rows, np.uint64))
    logits = torch.tensor([-float(depth), 0.0]).expand(rows, 2).contiguous()
    got = kernels.target_tokens(logits, *whole(rows), signed(seeds), signed(positions))
    # The density of t is e^-depth e^(-t e^-depth).
    weights = np.exp(-t * math.exp(-depth)) * 8 * math.exp(-depth)
    probability = (weights * (got == 0).numpy()).mean()
    assert probability == pytest.approx(math.exp(-depth) / (1 + math.exp(-depth)), rel=0.01)


def test_flat_rows_as_wide_as_a_vocabulary_equal_the_reference_to_the_bit():
    """Each token's noise is compared with all others, at any place of a vector."""
    logits = torch.zeros(3, VOCABULARY)
    seed, position = torch.tensor([1, 2, -3]), torch.tensor([0, 2**40, 7])
    want = reference.target_tokens(logits, *whole(3), seed, position)
    assert torch.equal(kernels.target_tokens(logits, *whole(3), seed, position), want)
