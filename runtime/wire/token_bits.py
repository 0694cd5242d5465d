"""Token ids as packed bits: each id takes just the bits that the vocabulary needs.

Id i of a list lies at bits i*w .. (i+1)*w - 1 of a little-endian bit string, w bits each, padded
with zero bits to a whole byte. Between that and fields of 32 bits, which `struct` knows, all ids of
a block move at once, in a few steps over one large integer: neighbours close up in pairs, pairs in
fours, and so on. With w = 3 and fields of 8 bits:

    .....ddd .....ccc .....bbb .....aaa
    ..........dddccc ..........bbbaaa       each odd field moved down by 8 - 3 bits
    ....................dddcccbbbaaa        each odd pair by 2 * (8 - 3)

It knows nothing of frames or messages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

FIELD_BITS = 32
DOUBLINGS = 10
BLOCK_TOKENS = 1 << DOUBLINGS  # whole bytes at any width; the steps cost the same a bit at any size


def token_bits(vocabulary_size: int) -> int:
    """Bits of one token id."""
    return (vocabulary_size - 1).bit_length()


def packed_bytes(count: int, vocabulary_size: int) -> int:
    """Bytes of `count` packed token ids."""
    return (count * token_bits(vocabulary_size) + 7) // 8


class OutsideVocabulary(ValueError):
    """A token id that there is none of."""


def check_tokens(tokens: Sequence[int], vocabulary_size: int) -> None:
    """OutsideVocabulary unless each of the ids, at least one, is in 0 .. vocabulary_size - 1."""
    least, most = min(tokens), max(tokens)
    wrong = least if least < 0 else most
    if not 0 <= wrong < vocabulary_size:
        raise OutsideVocabulary(
            f"token id {wrong} is outside the vocabulary; ids are 0 to {vocabulary_size - 1}"
        )


def pack_tokens(tokens: Sequence[int], vocabulary_size: int) -> bytes:
    """Pack token ids; ValueError unless each is a Python int in 0 .. vocabulary_size - 1."""
    if not tokens:
        return b""
    # A NumPy integer would be shifted in 64 bits and lose its value without a word.
    if set(map(type, tokens)) != {int}:
        kinds = sorted({type(token).__name__ for token in tokens})
        raise ValueError(f"token ids must be Python ints, got {', '.join(kinds)}")
    check_tokens(tokens, vocabulary_size)
    width = token_bits(vocabulary_size)
    starts = range(0, len(tokens), BLOCK_TOKENS)
    return b"".join(_pack_block(tokens[i : i + BLOCK_TOKENS], width) for i in starts)


def _pack_block(tokens: Sequence[int], width: int) -> bytes:
    count = len(tokens)
    block = int.from_bytes(struct.pack(f"<{count}I", *tokens), "little")
    for even_groups, gap_bits in _steps((count - 1).bit_length(), width):
        even = block & even_groups
        block = even | (block ^ even) >> gap_bits
    return block.to_bytes((count * width + 7) // 8, "little")


@lru_cache(maxsize=8 * (1 + DOUBLINGS))
def _steps(levels: int, width: int) -> tuple[tuple[int, int], ...]:
    """Of so many doublings: the bits that stay, and how far the others move to meet them."""
    return tuple(
        (_even_groups(FIELD_BITS << level, width << level), FIELD_BITS - width << level)
        for level in range(levels)
    )


def _even_groups(size_bits: int, used_bits: int) -> int:
    """The bits of every other group of a block: `used_bits` in each 2 * `size_bits`."""
    group, mask = (1 << used_bits) - 1, 0
    for at in range(0, FIELD_BITS * BLOCK_TOKENS, 2 * size_bits):
        mask |= group << at
    return mask


def unpack_tokens(packed: bytes, count: int, vocabulary_size: int) -> tuple[int, ...]:
    """The inverse of pack_tokens; ValueError where padding bits are set, OutsideVocabulary.

    `packed` holds exactly packed_bytes(count, vocabulary_size) bytes: the caller has checked.
    """
    if not count:
        return ()
    width = token_bits(vocabulary_size)
    block_bytes = BLOCK_TOKENS * width // 8
    tokens: tuple[int, ...] = ()
    for start in range(0, len(packed), block_bytes):
        block = int.from_bytes(packed[start : start + block_bytes], "little")
        tokens += _unpack_block(block, min(BLOCK_TOKENS, count - len(tokens)), width)
    check_tokens(tokens, vocabulary_size)
    return tokens


def _unpack_block(block: int, count: int, width: int) -> tuple[int, ...]:
    if block >> count * width:
        raise ValueError("the padding after the last token id is not zero")
    for even_groups, gap_bits in reversed(_steps((count - 1).bit_length(), width)):
        even = block & even_groups
        block = even | (block ^ even) << gap_bits
    return struct.unpack(f"<{count}I", block.to_bytes(4 * count, "little"))
