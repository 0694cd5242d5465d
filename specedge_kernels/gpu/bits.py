"""Words of 64 bits: how many are set, and where the highest one is. Knows no trees."""

import triton
import triton.language as tl


@triton.jit
def popcount(word):
    """The number of set bits of uint64 words."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def highest_bit(word):
    """The index of the highest set bit of uint64 words, -1 for 0."""
    word |= word >> 1
    word |= word >> 2
    word |= word >> 4
    word |= word >> 8
    word |= word >> 16
    word |= word >> 32
    return popcount(word) - 1
