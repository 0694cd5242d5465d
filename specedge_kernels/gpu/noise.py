"""Gumbel noise of (seed, position, token), and the order of float32 numbers as integers.

The same 23 bits as `reference.gumbel` and csrc/noise.h, by the finaliser of splitmix64 (Steele,
Lea, Flood, OOPSLA 2014); only the two logarithms may differ in the last place. Knows no logits.
"""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
# No draw lies outside -2.82 .. 16.64, so a value this much below another never overtakes it.
NOISE_RANGE = tl.constexpr(20.0)


@triton.jit
def noise_key(seed, position):
    """The part of the noise that a row's tokens share; seed and position int64."""
    return _mix(_mix(seed.to(tl.uint64)) + (position.to(tl.uint64) + 1) * GOLDEN)


@triton.jit
def gumbel(key, token):
    """Standard Gumbel noise of int64 tokens, float32."""
    bits = _mix(key + (token.to(tl.uint64) + 1) * GOLDEN) >> 41
    u = (bits.to(tl.int32).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
    return -tl.log(-tl.log(u))


@triton.jit
def ordered(x):
    """int32 numbers in the order of float32 x, zeros of both signs being equal."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number(key):
    """The float32 number that `ordered` maps to the key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def ranked(x, index):
    """One int64 for value and index: the larger value first, then the lower index (int32)."""
    return (ordered(x).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(rank):
    return 0x7FFFFFFF - (rank & 0x7FFFFFFF)


@triton.jit
def value_of(rank):
    return number((rank >> 32).to(tl.int32))


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * FIRST_FACTOR
    z = (z ^ (z >> 27)) * SECOND_FACTOR
    return z ^ (z >> 31)
