"""Text to ids and back, streams that never show half a character, and vocabularies compared."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from runtime import embedded
from runtime.model.config import ModelError
from runtime.model.tokenizer import TextStream, Tokenizer
from tests.model.tokenizer_cases import write as write_gguf

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
    "{% endif %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SAMPLES = [
    "Hello  world 12,345.67\r\n\n\tdef f(x): return x**2  # don't I'll",
    "Grüße, naïve café, e\u0301, ½, \u200b, ﬁ",
    "你好、世界。こんにちは 안녕하세요 Привет мир مرحبا بالعالم שלום עולם नमस्ते",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 🫠",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


def byte_level():
    """256 bytes, a few merges and two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "t"), ("ð", "Ł")]
    tokens = alphabet + ["".join(merge) for merge in merges]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|start|>"), AddedToken("<|end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE
    )


def word_pieces():
    """Words that begin with a mark for the space, as sentencepiece's do; bytes as a fallback."""
    words = ["▁", "▁a", "▁cat", "s", "▁sat"]
    tokens = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    byte_level().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def smollm2():
    try:
        embedded.target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return Tokenizer.load("smollm2")


@pytest.mark.parametrize("text", SAMPLES[:4])
def test_there_and_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocabulary_size for i in ids)
    assert tokenizer.decode(ids) == text


def test_chat_prompt_is_the_template_and_nothing_else(tokenizer):
    ids = tokenizer.chat_prompt([{"role": "user", "content": "hi"}])
    start, end = 259, 260
    expected = [
        start, *tokenizer.encode("user\nhi"), end, *tokenizer.encode("\n"),
        start, *tokenizer.encode("assistant\n"),
    ]  # fmt: skip
    assert ids == expected
    assert tokenizer.decode([start, *tokenizer.encode("hey"), end]) == "hey"


def test_the_models_first_token_comes_once():
    """A plain text gets it from the tokenizer, a conversation from its template."""
    theirs = byte_level()
    theirs.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 259)]
    )
    tokenizer = Tokenizer(theirs, [])
    assert tokenizer.encode("hi")[0] == 259
    assert tokenizer.chat_prompt([{"role": "user", "content": "hi"}])[:2] != [259, 259]


def test_conversations_that_cannot_be_written(tokenizer):
    with pytest.raises(ValueError, match="refuses this conversation: no tools here"):
        tokenizer.chat_prompt([{"role": "tool", "content": "x"}])
    with pytest.raises(ModelError, match="no chat template"):
        word_pieces().chat_prompt([{"role": "user", "content": "x"}])


def test_stop_ids_come_from_both_places(folder, tmp_path):
    assert Tokenizer.load(folder).stop_ids == {260}
    byte_level().save_pretrained(tmp_path)
    for content, stop_ids in (
        ('{"eos_token_id": 259}', {259, 260}),
        ('{"eos_token_id": [7, 259]}', {7, 259, 260}),
        ("{}", {260}),
        ("no JSON", {260}),
    ):
        (tmp_path / "generation_config.json").write_text(content)
        assert Tokenizer.load(tmp_path).stop_ids == stop_ids


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no JSON", "is not JSON: Expecting value: line 1"),
        ('{"eos_token_id": [259,', "is not JSON: Expecting value: line 1"),  # cut off
        ('{"eos_token_id": [259, "7"]}', "eos_token_id names '7', which is no token's number"),
        ('{"eos_token_id": {"id": 7}}', "eos_token_id names {'id': 7}, which is no token's number"),
        ('{"eos_token_id": true}', "eos_token_id names True, which is no token's number"),
        ('{"eos_token_id": [259, -1, 99999999]}', None),  # other rows than this one's
        ('{"eos_token_id": null}', None),
        (None, None),
    ],
)
def test_ends_that_cannot_be_read_are_told(content, told, tmp_path, caplog):
    """An answer that runs on past its end has a reason that somebody can find."""
    byte_level().save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "generation_config.json").write_text(content)
    assert 260 in Tokenizer.load(tmp_path).stop_ids
    lines = [record.getMessage() for record in caplog.records]
    if told is None:
        assert not lines
    else:
        (line,) = lines
        assert line.startswith(str(tmp_path / "generation_config.json"))
        assert told in line


def test_ends_in_what_is_no_file_are_told(tmp_path, caplog):
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").mkdir()
    Tokenizer.load(tmp_path)
    (record,) = caplog.records
    assert "generation_config.json cannot be read: Is a directory" in record.getMessage()


def test_vocabulary_hash_tells_any_difference(folder, tmp_path):
    own = Tokenizer.load(folder).vocabulary_hash()
    assert len(own) == 16
    assert own == Tokenizer(byte_level(), []).vocabulary_hash()
    other = byte_level()
    other.add_tokens(["<|new|>"])
    assert Tokenizer(other, []).vocabulary_hash() != own
    swapped = byte_level().backend_tokenizer.to_str().replace('"!":0,"\\"":1', '"!":1,"\\"":0')
    swapped = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(swapped))
    assert swapped.get_vocab()["!"] == 1
    assert Tokenizer(swapped, []).vocabulary_hash() != own


def test_vocabularies_that_look_alike_when_joined_have_other_hashes():
    """Ids and lengths count: a gap, a shifted border, a token that spells the next one's id."""
    vocabularies = [
        {"ab": 0, "c": 1},
        {"a": 0, "bc": 1},
        {"ab": 0, "c": 2},
        {"ab": 1, "c": 0},
        {"ab\0\0\0\1c": 0},
    ]
    backends = [SimpleNamespace(get_vocab=lambda v=vocabulary: v) for vocabulary in vocabularies]
    hashes = {Tokenizer(backend, []).vocabulary_hash() for backend in backends}
    assert len(hashes) == len(vocabularies)


@given(st.data())
@settings(max_examples=200)
def test_stream_of_any_bytes_in_any_pieces_is_the_decoded_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, 260), max_size=40))
    ids += tokenizer.encode(data.draw(st.text(max_size=10)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=10)))
    stream = TextStream(tokenizer)
    pieces = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["a cat sat", " cats", "catß 😀 sat", "日本 cat"])
def test_stream_keeps_the_spaces_that_decoders_drop_at_the_start(text):
    tokenizer = word_pieces()
    ids = tokenizer.encode(" " + text)
    stream = TextStream(tokenizer)
    pieces = [stream.push([i]) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_stream_shows_an_emoji_at_once_and_whole(tokenizer):
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("a😀")
    assert len(ids) > 3
    assert [stream.push([i]) for i in ids] == ["a", *[""] * (len(ids) - 2), "😀"]
    assert stream.push(ids[:-1]) == "a"
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_names_without_a_tokenizer(tmp_path, pairs):
    with pytest.raises(ModelError, match="has no readable tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        Tokenizer.load("/no/such/model")
    with pytest.raises(ModelError, match="has no readable tokenizer"):
        Tokenizer.load(pairs("llama").folder)


def test_the_same_vocabulary_in_a_gguf_file_is_the_same_tokenizer(tmp_path, tokenizer):
    tokens = sorted(byte_level().get_vocab(), key=byte_level().get_vocab().get)
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "merges": ["h e", "Ġ t", "ð Ł"],
        "eos_token_id": 260,
    }
    metadata = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    metadata |= {"general.architecture": "llama", "tokenizer.chat_template": TEMPLATE}
    write_gguf(tmp_path / "model.gguf", metadata)
    ours = Tokenizer.load(tmp_path / "model.gguf")
    for text in [*SAMPLES, "<|start|>the he<|end|>"]:
        assert ours.encode(text) == tokenizer.encode(text)
    for text in [*SAMPLES, "the he<|end|>"]:
        assert ours.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert ours.vocabulary_hash() == tokenizer.vocabulary_hash()
    assert ours.stop_ids == {260}
    messages = [{"role": "user", "content": "hi"}]
    assert ours.chat_prompt(messages) == tokenizer.chat_prompt(messages)
    with pytest.raises(ValueError, match="refuses this conversation: no tools here"):
        ours.chat_prompt([{"role": "tool", "content": "x"}])


def test_embedded_vocabulary_is_read_as_llama_cpp_reads_it(smollm2, llama_cpp_vocab):
    texts = [*SAMPLES, "a  1", "in 2024, 12345 items", "<|im_start|>user\nHi 👋<|im_end|>\n"]
    theirs = llama_cpp_vocab.read(embedded.target_path(), texts)
    assert [smollm2.encode(text) for text in texts] == theirs.ids
    assert [smollm2.decode(ids) for ids in theirs.ids] == [
        b"".join(theirs.pieces[index] for index in ids).decode() for ids in theirs.ids
    ]
    assert smollm2.stop_ids == theirs.stop_ids
    assert smollm2.vocabulary_size == len(theirs.pieces)


def test_embedded_model_reads_digits_one_by_one(smollm2):
    assert smollm2.encode("a  1") == [81, 256, 33]


def test_embedded_pair_has_one_vocabulary_and_template(smollm2):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 👋"}]
    draft = Tokenizer.load("smollm2-draft")
    assert draft.vocabulary_hash() == smollm2.vocabulary_hash()
    assert smollm2.chat_prompt(messages) == draft.chat_prompt(messages)
    assert smollm2.chat_prompt(messages) == smollm2.encode(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 👋<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", SAMPLES)
def test_embedded_stream(smollm2, text):
    ids = smollm2.encode(text)
    stream = TextStream(smollm2)
    pieces = [stream.push([i]) for i in ids]
    assert "".join(pieces) + stream.finish() == smollm2.decode(ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
