"""One vocabulary has one hash, however it is stored and padded; one template means one text."""

import hashlib
import struct
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from runtime.model.tokenizer import Tokenizer
from runtime.wire.messages import Hello, Welcome
from runtime.wire.vocabulary import same_vocabulary
from tests.conftest import byte_tokenizer

SPECIAL = ("<|start|>", "<|end|>", "<|reserved_special_token_5|>", "he", "[PAD]", "<pad>")
N_TOKENS = 256 + len(SPECIAL)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def as_the_page_says(tokens: dict[str, int], rows: int) -> bytes:
    """docs/protocol.md, section 4.7."""
    digest = hashlib.sha256()
    for token, index in sorted(tokens.items(), key=lambda item: item[1]):
        if index < rows:
            spelled = token.replace("\u2581", " ").encode()
            digest.update(struct.pack("<II", index, len(spelled)) + spelled)
    return digest.digest()[:16]


def spelled() -> dict[str, int]:
    return byte_tokenizer(SPECIAL).get_vocab()


def padded_gguf(
    path: Path, rows: int, spelling: str = "[PAD{}]", kind: int = UNUSED, split: str = "gpt-2"
) -> Path:
    """The vocabulary in a file without tensors, padded as converters do."""
    tokens = sorted(spelled(), key=spelled().get)
    kinds = [NORMAL] * 256 + [CONTROL] * len(SPECIAL) + [kind] * (rows - N_TOKENS)
    tokens += [spelling.format(index) for index in range(N_TOKENS, rows)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(257)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("folder")
    byte_tokenizer(SPECIAL).save_pretrained(path)
    return Tokenizer.load(path)


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("[PAD{}]", UNUSED),
        ("[PAD{}]", USER_DEFINED),  # converters of old
        ("<dummy{:05}>", CONTROL),
        ("<unused{}>", UNUSED),
        ("<|never {}|>", UNUSED),
    ],
)
def test_padding_is_no_part_of_a_vocabulary(
    folder: Tokenizer, tmp_path: Path, spelling: str, kind: int
) -> None:
    """A folder and two files of different sizes: every pair is one vocabulary, either way round."""
    small, large = (
        Tokenizer.load(padded_gguf(tmp_path / f"{rows}.gguf", rows, spelling, kind))
        for rows in (1280, 1408)
    )
    sides = [(folder, N_TOKENS), (folder, 1408), (small, 1280), (large, 1408)]
    for draft, rows in sides:
        digest = draft.vocabulary_hash(rows)
        assert digest == as_the_page_says(spelled(), rows)
        hello = Hello(1, rows, digest, "draft")
        for target, target_rows in sides:
            welcome = Welcome(1, target_rows, target.vocabulary_hash(target_rows), 1, 9, 1, "")
            assert same_vocabulary(hello, target_rows, target.vocabulary_hash)
            assert same_vocabulary(welcome, rows, draft.vocabulary_hash)
    assert (small.vocabulary_size, large.vocabulary_size) == (1280, 1408)


def test_ids_beyond_the_rows_of_either_play_no_part(folder: Tokenizer) -> None:
    more = byte_tokenizer((*SPECIAL, "<|more|>"))
    other = byte_tokenizer((*SPECIAL[:-1], "<|other|>"))
    for rows in (2, 200, 256, N_TOKENS - 1, N_TOKENS, 10**6):
        expected = as_the_page_says(spelled(), rows)
        assert folder.vocabulary_hash(rows) == expected
        is_same = Tokenizer(more, []).vocabulary_hash(rows) == expected
        assert is_same == (rows <= N_TOKENS)
        is_same = Tokenizer(other, []).vocabulary_hash(rows) == expected
        assert is_same == (rows < N_TOKENS)


def test_only_the_end_with_as_many_rows_can_tell(folder: Tokenizer) -> None:
    foreign = Welcome(1, 300, bytes(16), 1, 9, 1, "")
    assert same_vocabulary(foreign, 299, folder.vocabulary_hash)
    assert not same_vocabulary(foreign, 300, folder.vocabulary_hash)
    assert not same_vocabulary(foreign, 301, folder.vocabulary_hash)


def test_a_blank_is_spelled_as_its_mark_or_as_itself() -> None:
    """GGUF files have the blanks of whole tokens as they are, folders have the mark."""
    mark, blank, other = (
        Tokenizer(byte_tokenizer((*SPECIAL, token)), []).vocabulary_hash()
        for token in ("\u2581\u2581a", "  a", " a")
    )
    assert mark == blank != other


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "\n\n{{ bos_token }}\n",
    "  {% if bos_token %}\n  x{{ bos_token }}{% endif %}  \n",
    "{{- bos_token -}}\n {{ pad_token is defined }}{{ sep_token is defined }}{{ sep_token }}",
    "{%- set eos_token = 'mine' %}{{ eos_token }}{{ unk_token }}",
    "{% macro end(text) %}{{ text }}{{ eos_token }}{% endmacro %}{{ end(messages[0].content) }}",
    "no token at all {{ messages[0].content }}",
    "{# bos_token #}\n{% if mask_token is none or not mask_token is defined %}none{% endif %}",
]
TOKENS = ["<s>", "\"q\" 'q'", "back\\slash\\n", "{{ 1 }}", "%}", "🙂\u2581", "{% raw %}"]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("token", TOKENS)
def test_a_template_that_travels_makes_the_text_it_makes_at_home(source: str, token: str) -> None:
    """Rendered by transformers, with its own tokenizer and with one that has other tokens."""

    def text(tokenizer: PreTrainedTokenizerFast, template: str | None) -> str:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], chat_template=template, tokenize=False
        )

    own, other = byte_tokenizer(SPECIAL), byte_tokenizer(SPECIAL)
    own.chat_template, own.bos_token, own.pad_token = source, token, token
    other.chat_template, other.bos_token, other.mask_token = None, "<pad>", "<pad>"
    other.sep_token, other.unk_token = "<pad>", "<pad>"
    travelling = Tokenizer(own, []).portable_template
    assert text(other, travelling) == text(own, None) == text(own, travelling)


def test_no_template_travels_where_there_is_none() -> None:
    for template in (None, "", {"tool_use": "x"}):
        tokenizer = byte_tokenizer(SPECIAL)
        tokenizer.chat_template = template
        assert Tokenizer(tokenizer, []).portable_template is None


@pytest.mark.parametrize("split", ["qwen2", "llama-bpe", "default"])
def test_a_file_has_no_more_tokens_than_it_lists(
    folder: Tokenizer, tmp_path: Path, split: str
) -> None:
    """Whatever a reader adds for want of <|endoftext|> lies beyond the rows."""
    file = padded_gguf(tmp_path / "model.gguf", N_TOKENS, split=split)
    assert Tokenizer.load(file).vocabulary_hash(N_TOKENS) == folder.vocabulary_hash(N_TOKENS)


def test_sentence_pieces_are_one_vocabulary_in_a_folder_and_in_a_file(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, NORMAL, NORMAL, USER_DEFINED, UNUSED]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.add_special_tokens(pieces[:3])
    backend.add_tokens([AddedToken("\u2581\u2581\u2581", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, "   ", "[PAD262]"])
    writer.add_token_types(kinds)
    writer.add_token_scores([float(-index) for index in range(len(kinds))])
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = Tokenizer.load(tmp_path / "model.gguf")
    for rows in (259, 261, 262, 300):
        assert file.vocabulary_hash(rows) == Tokenizer.load(tmp_path).vocabulary_hash(rows)
