"""Gumbel noise of (seed, position, token), and the order of float32 numbers as integers.

The same bits as `reference.gumbel` and csrc/gumbel.h, by the finaliser of splitmix64 (Steele, Lea,
Flood, OOPSLA 2014) and float32 operations that are rounded one by one: whoever calls `gumbel` is
launched with enable_fp_fusion=False. Knows no logits.
"""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
MOST_NOISE = tl.constexpr(44.37)  # the largest noise there is, log 2^64, rounded up
LOG_2 = tl.constexpr(0.693147182)
SQRT_HALF = tl.constexpr(0x3F3504F3)  # the bits of sqrt(1/2)


@triton.jit
def noise_key(seed, position):
    """The part of the noise that a row's tokens share; seed and position int64."""
    return _mix(_mix(seed.to(tl.uint64)) + (position.to(tl.uint64) + 1) * GOLDEN)


@triton.jit
def noise_bits(key, token):
    """The hash of int64 tokens, uint64."""
    return _mix(key + (token.to(tl.uint64) + 1) * GOLDEN)


@triton.jit
def gumbel(bits):
    """Standard Gumbel noise of hashes, float32: see reference.gumbel_of."""
    high, low = (bits >> 32).to(tl.int32), bits.to(tl.int32)
    sign = high >> 31
    high, low = high ^ sign, ((low ^ sign) >> 1) & 0x7FFFFFFF
    # The lesser of v and 1 - v.
    r = (high.to(tl.float32) + (low.to(tl.float32) + 0.5) * 2.0**-31) * 2.0**-32
    exponent, f = _split(tl.where(sign < 0, r, 1.0 - r))
    # Where 1 - r is rounded, r itself is exact.
    exponent, f = _split(-_log(exponent, tl.where(exponent == 0, -r, f)))
    return -_log(exponent, f)


@triton.jit
def most_noise(bits):
    """No less than the noise of hashes, in few steps: see csrc/gumbel.h."""
    v = (bits >> 33).to(tl.int32).to(tl.float32)
    line = v.to(tl.int32, bitcast=True).to(tl.float32)
    return line * (LOG_2 * -(2.0**-23)) + ((31 + 127) * LOG_2 + 0.001)


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


@triton.jit
def _split(x):
    """x = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), for normal x > 0: e, f."""
    offset = x.to(tl.int32, bitcast=True) - SQRT_HALF
    f = ((offset & 0x7FFFFF) + SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    return offset >> 23, f


@triton.jit
def _log(exponent, f):
    """log(2^exponent (1 + f)), relatively exact near 1; minimax polynomial."""
    p = f * -0.100823812 + 0.161805019
    p = p * f + -0.172432244
    p = p * f + 0.199068829
    p = p * f + -0.249712288
    p = p * f + 0.333347142
    p = p * f + -0.500003219
    return exponent.to(tl.float32) * LOG_2 + (f * f * p + f)
