"""The hash of (seed, position, token) in numpy, and backwards: a position for any wanted hash.

splitmix64's finaliser can be undone, so tests can meet hashes that no search would find.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
# Both ends, the middle, and what lies beside every power of two from either end.
EXTREMES = sorted({(s + d) % 2**64 for b in range(64) for s in (2**b, -(2**b)) for d in (-1, 0, 1)})


def hash_of(seeds: Words, positions: Words, tokens: Words) -> Words:
    one = np.uint64(1)
    key = _mix(_mix(seeds) + (positions + one) * np.uint64(GOLDEN))
    return _mix(key + (tokens + one) * np.uint64(GOLDEN))


def positions_for(hashes: Words, seeds: Words, tokens: Words) -> Words:
    """The positions where the tokens have these hashes."""
    one = np.uint64(1)
    key = _unmix(hashes) - (tokens + one) * np.uint64(GOLDEN)
    return (_unmix(key) - _mix(seeds)) * np.uint64(pow(GOLDEN, -1, 2**64)) - one


def hashes_everywhere(n: int, rng: np.random.Generator) -> Words:
    """The extremes, and n random hashes whose distance from an end is of any order."""
    words = rng.integers(0, 2**64, n, dtype=np.uint64) >> rng.integers(0, 64, n, dtype=np.uint64)
    words = np.where(rng.random(n) < 0.5, words, ~words)
    return np.concatenate([np.array(EXTREMES, np.uint64), words])


def exact_noise(hashes: Words) -> npt.NDArray[np.float64]:
    """-log(-log(1 - v)) of v = (hash | 1) / 2^64, in float64."""
    odd = hashes | np.uint64(1)
    is_upper = odd >> np.uint64(63) == 1
    v = odd.astype(np.float64) * 2.0**-64
    rest = (np.uint64(0) - odd).astype(np.float64) * 2.0**-64  # 1 - v
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(np.where(is_upper, -np.log(rest), -np.log1p(-v))))


def _mix(z: Words) -> Words:
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(SHIFTS[2]))


def _unmix(z: Words) -> Words:
    z = _unshift(z, SHIFTS[2])
    for shift, factor in zip(SHIFTS[1::-1], FACTORS[::-1], strict=True):
        z = _unshift(z * np.uint64(pow(factor, -1, 2**64)), shift)
    return z


def _unshift(z: Words, shift: int) -> Words:
    return z ^ (z >> np.uint64(shift)) ^ (z >> np.uint64(2 * shift))
