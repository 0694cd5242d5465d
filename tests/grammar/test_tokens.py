"""What llguidance is told of a vocabulary is what the tokenizer says, for every id."""

from pathlib import Path

import numpy as np
import pytest

from runtime.grammar.grammars import Grammars
from runtime.grammar.tokens import Tokens
from runtime.model.tokenizer import Tokenizer
from tests.conftest import byte_tokenizer
from tests.grammar.vocabularies import Toy

EXTRA_ROWS = 5  # a padded embedding has more than the tokenizer knows


def byte_folder(folder: Path) -> Path:
    byte_tokenizer().save_pretrained(folder)
    return folder


def sentence_piece_folder(folder: Path) -> Path:
    """As Llama 2's: words begin with a mark, bytes have tokens, a text loses its first space."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁{", "{", "▁a", "a", "b", "▁ab", '"', "}", "é", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in pieces[:3]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["embedded", "bytes", "sentence pieces"])
def test_every_token_has_the_bytes_that_the_tokenizer_says(kind: str, tmp_path: Path) -> None:
    make = {"bytes": byte_folder, "sentence pieces": sentence_piece_folder}
    tokenizer = Tokenizer.load("smollm2" if kind == "embedded" else make[kind](tmp_path))
    known = tokenizer.vocabulary_size
    size = known + EXTRA_ROWS
    tokens = Tokens(tokenizer, size)
    theirs = tokens.llguidance
    assert theirs.vocab_size == size
    assert set(theirs.eos_tokens) == tokens.stop_ids == tokenizer.stop_ids
    n_texts = 0
    for index in range(size):
        text = tokenizer.token_bytes.get(index, first=False)
        if index >= known:
            assert text is None
        elif text is None:
            assert theirs.is_special_token(index), tokenizer.token(index)
        else:
            n_texts += 1
            # in llguidance's trie 0xff marks what is special, and no UTF-8 has it
            assert theirs.decode_bytes([index]) == text or text[:1] == b"\xff"
    assert n_texts > 250


def test_no_control_token_is_allowed_in_any_text(tmp_path: Path) -> None:
    for tokenizer in (
        Tokenizer.load("smollm2"),
        Tokenizer.load(byte_folder(tmp_path / "b")),
        Tokenizer.load(sentence_piece_folder(tmp_path / "s")),
    ):
        size = tokenizer.vocabulary_size + EXTRA_ROWS
        grammars = Grammars(lambda tokenizer=tokenizer, size=size: Tokens(tokenizer, size))
        matcher = grammars.matcher("json_schema", '{"type": "string"}')
        matcher.advance(tokenizer.token_bytes and [only(tokenizer, '"')])
        (mask,) = matcher.masks([], [])
        allowed = set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))
        no_text = {i for i in range(size) if tokenizer.token_bytes.get(i, first=False) is None}
        assert no_text >= tokenizer.stop_ids
        assert not allowed & no_text
        assert only(tokenizer, "a") in allowed


def only(tokenizer: Tokenizer, text: str) -> int:
    """The lowest token that is spelled so."""
    size = tokenizer.vocabulary_size
    return next(
        i for i in range(size) if tokenizer.token_bytes.get(i, first=False) == text.encode()
    )


def test_a_stop_token_that_is_spelled_as_text_is_none() -> None:
    """Else an answer could end within a string."""
    toy = Toy(["a", "b"])
    toy.stop_ids = frozenset([2])  # "a"
    matcher = toy.grammars().matcher("regex", "[ab]b")
    (mask,) = matcher.masks([], [])
    assert mask.tolist() == [1 << 3]


def test_a_model_without_a_stop_token_has_no_constraints() -> None:
    toy = Toy(["a"])
    toy.stop_ids = frozenset()
    with pytest.raises(ValueError, match="names no stop token"):
        toy.grammars().matcher("regex", "a")
