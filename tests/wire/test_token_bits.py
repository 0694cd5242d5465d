"""Bit packing against a string of binary digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire.token_bits import pack_tokens, packed_bytes, token_bits, unpack_tokens
from tests.wire.cases import token_ids

vocabularies = st.integers(2, 2**24) | st.sampled_from([2, 3, 256, 32_000, 49_152, 151_936, 2**24])


def digits(tokens, vocabulary):
    """The packed bytes, by writing every id out in binary."""
    width = len(bin(vocabulary - 1)) - 2
    text = "".join(format(token, f"0{width}b") for token in reversed(tokens))
    text = text.zfill(-(-len(text) // 8) * 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))[::-1]


@given(vocabularies.flatmap(lambda v: st.tuples(st.just(v), token_ids(v, max_size=300))))
def test_packing_equals_binary_digits_and_comes_back(case):
    vocabulary, tokens = case
    packed = pack_tokens(tokens, vocabulary)
    assert packed == digits(tokens, vocabulary)
    assert len(packed) == packed_bytes(len(tokens), vocabulary)
    assert unpack_tokens(packed, len(tokens), vocabulary) == tokens


@pytest.mark.parametrize(
    ("vocabulary", "bits"),
    [(2, 1), (3, 2), (32_000, 15), (49_152, 16), (128_256, 17), (151_936, 18)],
)
def test_width_is_what_the_last_id_needs(vocabulary, bits):
    assert token_bits(vocabulary) == bits


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1023, 1024, 1025, 20_000])
@pytest.mark.parametrize("vocabulary", [2, 32_000, 128_256, 151_936, 2**24])
def test_block_borders(vocabulary, count):
    tokens = tuple(i * 7919 % vocabulary for i in range(count))
    packed = pack_tokens(tokens, vocabulary)
    assert packed == digits(tokens, vocabulary)
    assert unpack_tokens(packed, count, vocabulary) == tokens


@pytest.mark.parametrize(
    "tokens", [(-1,), (49_152,), (3, 49_152, 5), (3, -1), (1.0,), (True,), ("1",)]
)
def test_an_id_outside_the_vocabulary_or_of_another_type_is_the_callers_mistake(tokens):
    with pytest.raises(ValueError, match=r"outside the vocabulary|must be Python ints"):
        pack_tokens(tokens, 49_152)


def test_numpy_integers_are_refused_and_not_cut():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="Python ints, got int64"):
        pack_tokens(tuple(numpy.arange(100)), 49_152)


@pytest.mark.parametrize("count", [1, 64, 1025])
def test_an_id_that_the_width_can_hold_but_the_vocabulary_cannot(count):
    packed = pack_tokens((0,) * (count - 1) + (151_936,), 2**18)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        unpack_tokens(packed, count, 151_936)


def test_every_padding_bit_must_be_zero():
    packed = pack_tokens((1, 2, 3), 151_936)
    for bit in range(3 * 18, len(packed) * 8):
        spoilt = int.from_bytes(packed, "little") | 1 << bit
        with pytest.raises(ValueError, match="padding"):
            unpack_tokens(spoilt.to_bytes(len(packed), "little"), 3, 151_936)
