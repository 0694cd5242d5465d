"""Streamed text is the decoded whole; text is what transformers makes of it, bytes are Python's."""

from itertools import chain
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from runtime.model.text_stream import TextStream
from runtime.model.tokenizer import Tokenizer

BAD = "\N{REPLACEMENT CHARACTER}"
# of characters; Python waits for the third byte of a surrogate too, though it will be none
BEGINNINGS = {
    encoded[:size]
    for code in range(0x80, 0x110000, 64)
    for encoded in [chr(code).encode(errors="surrogatepass")]
    for size in range(1, len(encoded))
}
WORDS = ["▁", "▁a", "▁▁", "cat", "é", "日", BAD, "a▁b", "<0x", "👍"]


def bpe(tokens, decoder):
    backend = Backend(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.decoder = decoder
    return backend


def byte_level():
    symbols = bytes_to_unicode()
    joined = ["Ġthe", "âĤ", "âĤ¬", "ĠâĤ", "ðŁĳ"]
    return bpe([*(symbols[byte] for byte in range(256)), *joined], decoders.ByteLevel())


def sentence_pieces(*parts):
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    return bpe(tokens, decoders.Sequence(list(parts)))


def llama():
    space, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    return sentence_pieces(space, decoders.ByteFallback(), decoders.Fuse(), strip)


def metaspace():
    return sentence_pieces(decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"))


def metaspace_without_bytes():
    return bpe(WORDS, decoders.Metaspace())


def word_piece():
    backend = Backend(models.WordPiece({"a": 0, "##b": 1, "cat": 2, "##s": 3}, unk_token="a"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def without_decoder():
    return Backend(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))


def wrapped(made):
    backend = made()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    backend.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("日user")])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), [])


WITH_BYTES = [byte_level, llama, metaspace]
ALL = [*WITH_BYTES, metaspace_without_bytes, word_piece, without_decoder]


@pytest.fixture(scope="module", params=ALL, ids=lambda made: made.__name__)
def tokenizer(request):
    return wrapped(request.param)


@pytest.fixture(scope="module", params=WITH_BYTES, ids=lambda made: made.__name__)
def byte_tokenizer(request):
    return wrapped(request.param)


@given(data=st.data())
def test_streamed_in_any_pieces_it_is_the_decoded_whole(tokenizer, data):
    size = tokenizer.vocabulary_size
    ids = data.draw(st.lists(st.integers(0, size + 1), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    stream = TextStream(tokenizer)
    pieces = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@given(data=st.data())
def test_text_is_decoded_as_transformers_does(tokenizer, data):
    """Any tokens; by byte tokens whole characters alone, since of broken ones it says less."""
    size = tokenizer.vocabulary_size
    characters = st.sampled_from(["€", "é", "👍", " ", "a", "\n", "\u0800", "\U0010ffff"])
    known = tokenizer._tokenizer.get_vocab()
    single = st.integers(0, size - 1).map(lambda index: [index])
    if "<0x00>" in known:
        single |= characters.map(lambda text: list(text.encode()))
        single = single.filter(lambda ids: len(ids) > 1 or not 0x80 <= ids[0] <= 0xFF)
    ids = list(chain(*data.draw(st.lists(single, max_size=12))))
    theirs = tokenizer._tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == theirs


@given(data=st.binary(max_size=12))
@example(data=b"\xe2\x82\xac\x80")
@example(data=b"\xe2\x82")
@example(data=b"\xed\xa0\x80\xf0\x9f\x91")
@example(data=b"\xc0\xaf\xf5\x80\xe2\x28\xa1")
def test_bytes_are_decoded_as_python_does(byte_tokenizer, data):
    """The first 256 ids are the bytes; a letter in front, since some drop a space there."""
    ids = [ord("a"), *data]
    assert byte_tokenizer.decode(ids) == bytes(ids).decode(errors="replace")
    stream, shown = TextStream(byte_tokenizer), ""
    for count in range(1, len(ids) + 1):
        shown += stream.push(ids[count - 1 : count])
        seen = bytes(ids[:count])
        begun = next((n for n in (3, 2, 1) if seen[-n:] in BEGINNINGS), 0)
        assert shown == seen[: count - begun].decode(errors="replace")
    assert shown + stream.finish() == byte_tokenizer.decode(ids)


def test_control_tokens_are_found_by_their_spelling(tokenizer):
    vocabulary = tokenizer._tokenizer.get_vocab()
    assert tokenizer.control_ids(["<s>", "<tool>", "cat", "no such"]) == {vocabulary["<s>"]}
    assert tokenizer.control_ids([]) == frozenset()


def test_a_tokenizer_may_know_its_own_spelling():
    class OwnBytes:
        def get(self, index, first):
            return bytes([index]) if index < 256 else None

    own = Tokenizer(SimpleNamespace(token_bytes=OwnBytes()), [])
    assert own.decode([0xE2, 300, 0x82, 0xAC, 0x80]) == "€" + BAD


def test_control_tokens_can_be_shown(tokenizer):
    vocabulary = tokenizer._tokenizer.get_vocab()
    start, tool = vocabulary["<s>"], vocabulary["<tool>"]
    stream = TextStream(tokenizer.showing(["<s>", "no such"]))
    text = stream.push([start, tool, start]) + stream.finish()
    assert text.replace(" ", "") == "<s><tool><s>"
    assert tokenizer.decode([start, tool, start]) == "<tool>"


def test_an_added_token_is_spelled_as_it_is_written():
    """Under a byte-level decoder too, whose alphabet has some of its letters for other bytes."""
    backend = byte_level()
    backend.add_tokens(["naïve", "Ģ", " "])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), [])
    text = "naïve Ģ"
    assert tokenizer.decode(backend.encode(text).ids) == text


def test_a_character_is_shown_with_its_last_byte(byte_tokenizer):
    stream = TextStream(byte_tokenizer)
    ids = [ord("a"), *"€".encode(), 0x80, *BAD.encode(), *"👍".encode()[:2]]
    assert [stream.push([index]) for index in ids] == ["a", "", "", "€", BAD, "", "", BAD, "", ""]
    assert stream.finish() == BAD
