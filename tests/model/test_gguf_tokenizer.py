"""Tokenizers of GGUF files: stops, defaults, special tokens, and what is no tokenizer.

Values by hand, as llama.cpp has them; random files are held against it elsewhere.
"""

import pytest

from runtime.model.config import ModelError
from runtime.model.gguf import Metadata
from runtime.model.gguf_vocabulary import Vocabulary, stop_ids
from runtime.model.tokenizer import TextStream, Tokenizer
from tests.model.tokenizer_cases import LETTERS, write

ALPHABET = list(LETTERS.values())
PIECES = ["<unk>", "<s>", "</s>", "▁", "Hello", "▁Hello", "H", "e", "l", "o", "▁▁", "he", "el"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture
def write_file(tmp_path):
    """A function that writes a file of tokenizer fields and gives its path."""

    def written(**fields):
        metadata = {"general.architecture": "llama", "general.name": fields.pop("name", "small")}
        metadata |= {f"tokenizer.{key}": fields.pop(key) for key in list(fields) if "chat" in key}
        fields = {name: value for name, value in fields.items() if value is not None}
        metadata |= {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
        write(tmp_path / "model.gguf", metadata)
        return tmp_path / "model.gguf"

    return written


@pytest.fixture
def byte_pairs(write_file):
    """A function from fields and further tokens, of control, to a tokenizer."""

    def made(*control, **fields):
        tokens = [*ALPHABET, "he", *control]
        kinds = [1] * (len(tokens) - len(control)) + [3] * len(control)
        own = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["h e"]}
        return Tokenizer.load(write_file(**own | {"token_type": kinds} | fields))

    return made


@pytest.fixture
def sentence_pieces(write_file):
    def made(**fields):
        kinds = [2, 3, 3] + [1] * (len(PIECES) - 3) + [6] * 256
        own = {"model": "llama", "tokens": [*PIECES, *BYTES], "token_type": kinds}
        return Tokenizer.load(write_file(**own | fields))

    return made


def ids_of(path_or_tokenizer, *tokens):
    vocabulary = path_or_tokenizer._tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


@pytest.mark.parametrize(
    ("control", "ending"),
    [
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], {"<|endoftext|>", "<|im_end|>"}),
        (["<|end_of_text|>", "<|eot_id|>"], {"<|end_of_text|>", "<|eot_id|>"}),
        (["<eos>", "<end_of_turn>", "<pad>"], {"<eos>", "<end_of_turn>"}),
        (["<s>", "</s>", "[INST]"], {"<s>", "</s>"}),  # the first one is the file's end token
        (["<|return|>", "<|call|>", "<|end|>"], {"<|return|>", "<|call|>"}),
        (["<|return|>", "<|end|>"], {"<|return|>", "<|end|>"}),
        (["<|tool_response>", "</s>"], {"<|tool_response>"}),
        (["<eos>", "<|fim_pad|>", "<|repo_name|>"], {"<eos>", "<|fim_pad|>", "<|repo_name|>"}),
    ],
)
def test_an_answer_ends_at_all_tokens_that_end_a_turn(byte_pairs, control, ending):
    tokenizer = byte_pairs(*control, eos_token_id=257)
    assert tokenizer.stop_ids == set(ids_of(tokenizer, *ending))


def test_end_tokens_count_by_their_text_whatever_their_kind(byte_pairs):
    tokenizer = byte_pairs("<|im_end|>", "x x", token_type=[1] * 259, eos_token_id=258)
    assert tokenizer.stop_ids == {257, 258}
    assert tokenizer.encode("he<|im_end|>") == [256, 257]
    assert tokenizer.decode([256, 257]) == "he"


def test_end_tokens_that_the_file_names(byte_pairs):
    tokenizer = byte_pairs(
        "<a>", "<b>", "<c>", eos_token_id=257, eot_token_id=258, eom_token_id=259
    )
    assert tokenizer.stop_ids == {257, 258, 259}


def test_ids_outside_the_vocabulary_end_nothing(byte_pairs):
    assert byte_pairs("<a>", eos_token_id=257, eot_token_id=9999).stop_ids == {257}
    assert byte_pairs("<a>", eos_token_id=257, eot_token_id=2**32 - 1).stop_ids == {257}


def test_stop_ids_need_no_tokenizer(write_file):
    fields = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "a", "<|eot_id|>"]}
    assert stop_ids(Metadata(write_file(**fields))) == {2, 4}


@pytest.mark.parametrize(("adds", "first"), [(None, "▁Hello"), (True, "▁Hello"), (False, "Hello")])
def test_sentence_pieces_begin_with_a_space_unless_the_file_says_no(sentence_pieces, adds, first):
    tokenizer = sentence_pieces(
        scores=[-float(n) for n in range(len(PIECES))] + [0.0] * 256, add_space_prefix=adds
    )
    begin = [] if adds is False else ["▁"]
    # "Hel" is no piece, so that "Hello" is not reached from "el"
    assert tokenizer.encode("Hello") == ids_of(tokenizer, "<s>", *begin, "H", "el", "l", "o")
    assert tokenizer.decode(ids_of(tokenizer, "▁Hello")) == ("Hello" if begin else " Hello")
    assert tokenizer.decode(ids_of(tokenizer, first)) == "Hello"


def test_sentence_pieces_after_a_control_token_begin_with_a_space(sentence_pieces):
    tokenizer = sentence_pieces(add_bos_token=False)
    expected = ids_of(tokenizer, "▁", "H", "</s>", "▁", "o")
    assert tokenizer.encode("H</s>o") == expected


def test_of_equal_scores_the_leftmost_pair_is_joined(write_file):
    fields = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", *"abc", "ab", "bc", *BYTES]}
    tokenizer = Tokenizer.load(write_file(**fields, add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("abc") == ids_of(tokenizer, "ab", "c")


def test_a_character_without_a_piece_or_bytes_is_the_unknown_one(write_file):
    fields = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "a", *BYTES[:128]]}
    tokenizer = Tokenizer.load(write_file(**fields, add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("aéb") == ids_of(tokenizer, "a", "<unk>", "<0x62>")


def test_pieces_are_joined_of_characters_that_are_none(write_file):
    fields = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "日本", *BYTES]}
    tokenizer = Tokenizer.load(write_file(**fields, add_space_prefix=False, add_bos_token=False))
    assert tokenizer.encode("日本日") == ids_of(tokenizer, "日本", "<0xE6>", "<0x97>", "<0xA5>")


@pytest.mark.parametrize(
    ("pre", "adds", "expected"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("tekken", None, True),
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("qwen2", None, False),
        (None, None, False),
        ("gemma4", False, True),
    ],
)
def test_first_token_by_the_name_of_the_split(byte_pairs, pre, adds, expected):
    tokenizer = byte_pairs("<bos>", pre=pre, add_bos_token=adds, bos_token_id=257)
    assert (tokenizer.encode("x") == [257, *ids_of(tokenizer, "x")]) == expected


def test_a_file_that_names_no_split_is_not_cut_as_gpt2s_is(byte_pairs):
    own = {"tokens": [*ALPHABET, "Ġ(", "34"], "token_type": [1] * 258, "merges": ["Ġ (", "3 4"]}
    gpt2 = byte_pairs(pre="gpt-2", **own)
    assert gpt2.encode("x (1234") == ids_of(gpt2, "x", "Ġ(", "1", "2", "34")
    for name in (None, "default", ""):
        tokenizer = byte_pairs(pre=name, **own)
        assert tokenizer.encode("x (1234") == ids_of(tokenizer, "x", "Ġ", "(", "1", "2", "3", "4")


def test_vocabulary_is_the_files_and_nothing_more(write_file):
    tokens = [*ALPHABET, "he", "<|endoftext|>", "[PAD258]", "[PAD259]", ""]
    kinds = [1] * 257 + [3, 5, 5, 1]
    path = write_file(
        model="gpt2", pre="qwen2", tokens=tokens, token_type=kinds, merges=["h e"], eos_token_id=257
    )
    vocabulary = Vocabulary(Metadata(path))
    assert vocabulary.tokens == [*tokens[:-1], "[EMPTY_260]"]
    assert Tokenizer.load(path).vocabulary_size == len(tokens)
    assert Tokenizer.load(path)._tokenizer.unused_ids == {258, 259}
    assert list(vocabulary.ids.values()) == list(range(len(tokens)))


def test_texts_of_all_kinds_of_tokens(byte_pairs):
    tokens = [*ALPHABET, "Ġé", "<|tool|>", "éé", "▁x", "[PAD260]", "<|im_end|>", "<0x41>", "日 x"]
    kinds = [1] * 257 + [3, 4, 4, 5, 1, 6, 1]
    tokenizer = byte_pairs(tokens=tokens, token_type=kinds)
    texts = [tokenizer.decode([index]) for index in range(256, len(tokens))]
    assert texts == [" \ufffd", "", "éé", "▁x", "", "", "A", "日 x"]
    assert tokenizer.decode([9999, -1]) == ""


def test_streamed_bytes_of_sentence_pieces_are_the_decoded_whole(sentence_pieces):
    tokenizer = sentence_pieces()
    ids = ids_of(tokenizer, "<0xE2>", "<0x82>", "<0xAC>", "<0x80>", "o", "<0xC3>")
    stream = TextStream(tokenizer)
    pieces = [stream.push([index]) for index in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == "€\ufffdo\ufffd"


def test_the_longest_special_token_is_found_first(byte_pairs):
    tokenizer = byte_pairs("<a", "<a><b", "a><b>")
    assert tokenizer.encode("x<a><b>") == ids_of(tokenizer, "x", "<a><b", ">")
    tokenizer = byte_pairs("<a", "a><b>")
    assert tokenizer.encode("<a><b>") == ids_of(tokenizer, "<", "a><b>")

    tokenizer = byte_pairs("xya", "a日")  # of bytes, of which the second has more
    assert tokenizer.encode("xya日") == ids_of(tokenizer, "x", "y", "a日")


def test_a_mask_of_jina_takes_the_space_before_it(byte_pairs):
    tokenizer = byte_pairs("<mask>", "<s>", pre="jina-v2-code")
    assert tokenizer.encode("x \n<mask> x <s>") == ids_of(
        tokenizer, "x", "<mask>", "Ġ", "x", "Ġ", "<s>"
    )


def test_the_name_of_the_split_goes_before_the_name_of_the_model(byte_pairs):
    tokenizer = byte_pairs("<a>", pre="jina-v2-code", name="phi3")
    assert tokenizer.encode("<a> x") == ids_of(tokenizer, "<a>", "Ġ", "x")


def test_a_token_that_the_file_gives_a_role_leaves_the_texts_of_that_role_alone(byte_pairs):
    """<PRE> begins what is to be filled in, unless the file has another token for that."""
    kinds = [1] * 258
    assert byte_pairs("<PRE>", token_type=kinds).decode([257]) == ""
    assert byte_pairs("<PRE>", token_type=kinds, fim_pre_token_id=1).decode([257]) == "<PRE>"
    assert byte_pairs("<PRE>", token_type=kinds, prefix_token_id=1).decode([257]) == "<PRE>"


def test_special_tokens_of_phi3_take_the_space_behind_them(byte_pairs):
    kept = ["<s>", "<unk>", "<|endoftext|>"]
    tokenizer = byte_pairs("<|user|>", "</s>", *kept, name="Phi-3 mini")
    for token in ("<|user|>", "</s>"):
        assert tokenizer.encode(f"{token} \n x") == ids_of(tokenizer, token, "x")
    for token in kept:
        assert tokenizer.encode(f"{token} x") == ids_of(tokenizer, token, "Ġ", "x")


def test_merges_whose_parts_are_no_tokens(byte_pairs):
    """Through a symbol that is none, and to one that is none, which is spelled by its letters."""
    tokens = [*(letter for letter in ALPHABET if letter != "Ġ"), "abc"]
    fields = {"tokens": tokens, "token_type": [1] * len(tokens), "merges": ["a b", "ab c", "x y"]}
    tokenizer = byte_pairs(**fields)
    assert tokenizer.encode("abcab xy") == ids_of(tokenizer, "abc", "a", "b", "x", "y")


TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{{ eos_token }}{% endfor %}"


def test_chat_template_with_the_names_of_tokens(byte_pairs):
    tokenizer = byte_pairs("<s>", "</s>", eos_token_id=258, chat_template=TEMPLATE)
    messages = [{"role": "user", "content": "he"}]
    assert tokenizer.chat_prompt(messages) == ids_of(tokenizer, "<s>", "he", "</s>")


def test_text_that_spells_a_control_token_stays_text(byte_pairs, sentence_pieces):
    messages = [{"role": "user", "content": "he</s>he"}]
    pairs = byte_pairs("<s>", "</s>", eos_token_id=258, chat_template=TEMPLATE)
    spelled = [*"</s>", "he"]
    expected = ids_of(pairs, "<s>", "he", *spelled, "</s>")
    assert pairs.chat_prompt(messages) == expected
    assert pairs.encode("</s>") == ids_of(pairs, "</s>"), "but for a prompt that is taken as it is"
    pieces = sentence_pieces()
    ids = pieces.chat_prompt(messages, template=TEMPLATE)
    assert [index for index in ids if index in pieces.token_bytes.control] == [1, 2]
    # no space where it was cut
    assert pieces.decode(ids) == "he</s>he"


def test_named_chat_templates_beside_the_default_one(byte_pairs):
    more = {"chat_template.tool_use": "tools"}
    tokenizer = byte_pairs("<s>", "</s>", eos_token_id=258, chat_template=TEMPLATE, **more)
    messages = [{"role": "user", "content": "he"}]
    assert tokenizer.chat_prompt(messages) == ids_of(tokenizer, "<s>", "he", "</s>")
    assert tokenizer._tokenizer.chat_template == {"default": TEMPLATE, "tool_use": "tools"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": None}, r"tokenizer\.ggml\.model is None"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model is 'bert'; expected 'gpt2'"),
        ({"model": ["gpt2"]}, r"tokenizer\.ggml\.model is \['gpt2'\]"),
        ({"pre": "no-such-name"}, r"tokenizer\.ggml\.pre is 'no-such-name'"),
        ({"pre": 3}, r"tokenizer\.ggml\.pre is 3"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is no list of texts"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens is no list of texts"),
        ({"tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'"),
        ({"merges": None}, r"tokenizer\.ggml\.merges is no list of texts"),
        ({"merges": ["a b", "ab"]}, "merge 'ab' is not two parts"),
        (
            {"token_type": [1, 1]},
            r"tokenizer\.ggml\.token_type has 2 entries; expected .* 3 tokens",
        ),
        ({"token_type": ["a"]}, r"tokenizer\.ggml\.token_type is no list of numbers"),
        ({"scores": ["a"]}, r"tokenizer\.ggml\.scores is no list of numbers"),
        ({"add_bos_token": "yes"}, r"tokenizer\.ggml\.add_bos_token is 'yes'"),
        ({"eos_token_id": "a"}, r"tokenizer\.ggml\.eos_token_id is 'a'"),
        ({"pre": "llama-bpe"}, "every text is to get a token bos"),
        ({"add_eos_token": True}, "every text is to get a token eos"),
    ],
)
def test_fields_that_make_no_tokenizer_are_a_sentence(write_file, fields, sentence):
    whole = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "c"], "merges": ["a b"]}
    assert Tokenizer.load(write_file(**whole)).encode("a") == [0]
    with pytest.raises(ModelError, match=f"model.gguf has no readable tokenizer: .*{sentence}"):
        Tokenizer.load(write_file(**whole | fields))
