"""Token ids as packed bits: each id takes just the bits that the vocabulary needs.

Id i of a list lies at bits i*w .. (i+1)*w - 1 of a little-endian bit string, w bits each, padded
with zero bits to a whole byte. It knows nothing of frames or messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lshift

# 64 ids of any width end on a byte, and integers of this size are still cheap to shift.
BLOCK_TOKENS = 64


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
    wrong = min(tokens) if min(tokens) < 0 else max(tokens)
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
    if len(tokens) <= BLOCK_TOKENS:
        return _pack_block(tokens, width)
    starts = range(0, len(tokens), BLOCK_TOKENS)
    return b"".join(_pack_block(tokens[i : i + BLOCK_TOKENS], width) for i in starts)


def _pack_block(tokens: Sequence[int], width: int) -> bytes:
    bits = len(tokens) * width
    block: int = sum(map(lshift, tokens, range(0, bits, width)))
    return block.to_bytes((bits + 7) // 8, "little")


def unpack_tokens(packed: bytes, count: int, vocabulary_size: int) -> tuple[int, ...]:
    """The inverse of pack_tokens; ValueError where padding bits are set, OutsideVocabulary.

    `packed` holds exactly packed_bytes(count, vocabulary_size) bytes: the caller has checked.
    """
    if not count:
        return ()
    width = token_bits(vocabulary_size)
    block_bytes = BLOCK_TOKENS * width // 8
    tokens: list[int] = []
    for start in range(0, len(packed), block_bytes):
        block = int.from_bytes(packed[start : start + block_bytes], "little")
        tokens += _unpack_block(block, min(BLOCK_TOKENS, count - len(tokens)), width)
    check_tokens(tokens, vocabulary_size)
    return tuple(tokens)


def _unpack_block(block: int, count: int, width: int) -> list[int]:
    bits = count * width
    if block >> bits:
        raise ValueError("the padding after the last token id is not zero")
    mask = (1 << width) - 1
    return [block >> shift & mask for shift in range(0, bits, width)]
