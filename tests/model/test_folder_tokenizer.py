"""Tokenizers of model folders: which files count, what ends an answer, and no code of strangers."""

import json
import os
import select
import shutil
import sys
from contextlib import suppress
from importlib.util import find_spec

import gguf
import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from runtime.model import weights
from runtime.model.config import ModelError
from runtime.model.tokenizer import Tokenizer
from tests.model.test_tokenizer import SAMPLES, byte_level

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CLASSES = ("LlamaTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast", None)
END = 260  # byte_level's own


def rewrite(path, **changes):
    fields = json.loads(path.read_text()) if path.exists() else {}
    fields = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    path.write_text(json.dumps(fields))


@pytest.fixture
def folder(tmp_path):
    """A tokenizer beside the configuration of a llama."""
    byte_level().save_pretrained(tmp_path)
    rewrite(tmp_path / "config.json", model_type="llama")
    return tmp_path


def digits_one_by_one(backend):
    """As SmolLM2's, whose file names the class GPT2Tokenizer."""
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )


def split_at_letters(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("h"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def small_letters(backend):
    backend.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize("change", [digits_one_by_one, split_at_letters, small_letters])
def test_tokenizer_json_is_read_as_it_is_written(folder, change):
    """Whatever classes the files name: the tokenizers library reads no other file."""
    theirs = byte_level()
    theirs.add_tokens(["12", "HE"])
    change(theirs.backend_tokenizer)
    theirs.save_pretrained(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    for family in FAMILIES:
        for name in CLASSES:
            rewrite(folder / "config.json", model_type=family)
            (folder / "tokenizer_config.json").write_text("{}")
            rewrite(folder / "tokenizer_config.json", tokenizer_class=name, eos_token="<|end|>")
            ours = Tokenizer.load(folder)
            for text in [*SAMPLES, "The he 12 HE 3", "<|start|>the he<|end|>"]:
                assert ours.encode(text) == backend.encode(text).ids, (family, name, text)
            assert ours.vocabulary_size == backend.get_vocab_size()


def lists(folder, tokenizer_class):
    """vocab.json and merges.txt in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    special = {"259": "<|start|>", "260": "<|end|>"}
    decoder = {index: {"content": token, "special": True} for index, token in special.items()}
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class=tokenizer_class,
        added_tokens_decoder=decoder,
    )


def test_a_vocabulary_and_merges_are_read_by_their_class(folder):
    expected = Tokenizer.load(folder)
    lists(folder, "GPT2Tokenizer")
    ours = Tokenizer.load(folder)
    for text in SAMPLES:
        assert ours.encode(text) == expected.encode(text)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_class_that_does_not_read_the_lists_is_a_sentence(folder, name):
    """transformers makes a vocabulary of four tokens."""
    lists(folder, name)
    with pytest.raises(ModelError, match=r"no class for its vocab.json; save a tokenizer.json"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [None, {}, {"tokenizer_class": "LlamaTokenizer"}])
def test_a_folder_without_a_vocabulary_is_a_sentence(tmp_path, family, settings):
    """transformers makes one of a single token, and every text is empty."""
    rewrite(tmp_path / "config.json", model_type=family)
    if settings is not None:
        rewrite(tmp_path / "tokenizer_config.json", **settings)
    with pytest.raises(ModelError, match=r"no readable tokenizer: expected tokenizer.json, or voc"):
        Tokenizer.load(tmp_path)


def test_a_sentencepiece_model_alone_says_what_it_needs(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"aGVsbG8= 0\n")
    with pytest.raises(ModelError, match=r"tokenizer.model is not a SentencePiece model; save a"):
        Tokenizer.load(folder)
    if find_spec("sentencepiece"):
        pytest.skip("the package that is missed is here")
    (folder / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>\x15\0\0\0\0")
    with pytest.raises(ModelError, match=r"needs more packages: `pip install sentencepiece "):
        Tokenizer.load(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True, "bos_token": "<s>"}])
def test_a_sentencepiece_model_alone_is_read_as_sentencepiece_does(tmp_path, family, settings):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLES * 3),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    rewrite(tmp_path / "config.json", model_type=family)
    rewrite(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", **settings)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours, first = Tokenizer.load(tmp_path), [theirs.bos_id()] if settings else []
    for text in SAMPLES:
        assert ours.encode(text) == first + theirs.encode(text)
    assert ours.stop_ids == {theirs.eos_id()}


@pytest.mark.parametrize(
    ("generation", "config", "stop_ids"),
    [
        ({}, {"eos_token_id": [2, 0]}, {0, 2}),
        ({}, {"eos_token_id": 2}, {2}),
        ({"eos_token_id": 7}, {"eos_token_id": [2, 0]}, {0, 2, 7}),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 2}, {2, 7, 9}),
        ({"eos_token_id": None}, {"text_config": {"eos_token_id": [3]}}, {3}),
        ({"eos_token_id": []}, {"eos_token_id": 4, "text_config": {"eos_token_id": 3}}, {3, 4}),
        # no ids, and ids of nothing
        ({"eos_token_id": [-1, 5, 261, 10**30]}, {"eos_token_id": -1}, {5}),
        ({"eos_token_id": [True, 2.0, "3", None, [4], {}, 6]}, {"eos_token_id": False}, {6}),
        ({"eos_token_id": "2"}, {"eos_token_id": 2.0, "text_config": [2]}, set()),
        ({"eos_token_id": list(range(256))}, {}, set(range(256))),
    ],
)
def test_what_ends_an_answer(folder, generation, config, stop_ids):
    """The union of all that name an end: people mend one file or another."""
    rewrite(folder / "generation_config.json", **generation)
    rewrite(folder / "config.json", **config)
    assert Tokenizer.load(folder).stop_ids == stop_ids | {END}


def test_ids_that_only_a_gap_hides_are_no_stops(folder):
    """A vocabulary may have fewer tokens than its largest id says."""
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["model"]["vocab"]["!"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    rewrite(folder / "config.json", eos_token_id=[0, 300, 299])
    assert Tokenizer.load(folder).stop_ids == {300, END}


def test_a_million_ends_are_a_sentence(folder):
    rewrite(folder / "config.json", eos_token_id=[2] * 10**6)
    with pytest.raises(ModelError, match=r"config.json: eos_token_id names 1000000 tokens; expect"):
        Tokenizer.load(folder)


TEMPLATES = {
    "in the configuration": ({"chat_template": "C"}, {}, "C"),
    "several, in a list": (
        {"chat_template": [{"name": "tool_use", "template": "T"},
                           {"name": "default", "template": "D"}]}, {}, "D",
    ),
    "in a file of its own": ({}, {"chat_template.jinja": "J"}, "J"),
    "in both": ({"chat_template": "C"}, {"chat_template.jinja": "J"}, "J"),
    "several, in files": (
        {}, {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"}, "J",
    ),
    "for tools alone": ({}, {"additional_chat_templates/tool_use.jinja": "T"}, None),
    "nowhere": ({}, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("where", TEMPLATES)
def test_where_a_chat_template_lies(where, folder):
    """A file of its own counts more than the configuration, as for transformers."""
    settings, files, template = TEMPLATES[where]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    rewrite(folder / "tokenizer_config.json", **{"chat_template": None, **settings})
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert Tokenizer.load(folder).chat_template == template


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast): pass
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): pass
"""


@pytest.fixture
def unread_yes(monkeypatch):
    """A terminal on which somebody has already typed y; asserts that nothing was asked."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, encoding="utf-8") as stdin, os.fdopen(ours, "wb", 0) as keyboard:
        keyboard.write(b"y\n" * 3)
        monkeypatch.setattr(sys, "stdin", stdin)
        yield
        assert select.select([stdin], [], [], 0)[0]
        assert os.read(stdin.fileno(), 100) == b"y\n"


@pytest.fixture
def marker(folder):
    """What exists once code that came with the folder has run."""
    path = folder / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(path)))
    yield path
    assert not path.exists()


AUTO_MAPS = (
    {"AutoTokenizer": ["own.OwnTokenizer", None]},
    {"AutoTokenizer": [None, "own.OwnTokenizer"]},
    {"AutoTokenizer": ["someone/else--own.OwnTokenizer", None]},
    ["own.OwnTokenizer", None],
)


@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("auto_map", AUTO_MAPS)
@pytest.mark.parametrize("name", ["OwnTokenizer", None])
@pytest.mark.parametrize("model_type", ["llama", "own", None])
def test_a_tokenizer_that_is_code_is_refused_and_nothing_is_asked(
    folder, marker, unread_yes, capfd, model_type, name, auto_map, vocabulary
):
    rewrite(folder / "config.json", model_type=model_type)
    if vocabulary == "vocab.json":
        lists(folder, name)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    fields |= {"auto_map": auto_map, "tokenizer_class": name}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    sentence = r"it is code of its own \(tokenizer_config.json: auto_map\), which is never run$"
    with pytest.raises(ModelError, match=sentence):
        Tokenizer.load(folder)
    assert "y/N" not in capfd.readouterr().out


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "own", None])
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.json"])
def test_code_beside_a_known_tokenizer_is_not_run(
    folder, marker, unread_yes, model_type, vocabulary
):
    expected = Tokenizer.load(folder)
    every = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    rewrite(folder / "config.json", model_type=model_type, auto_map=every)
    if vocabulary == "vocab.json":
        lists(folder, "GPT2Tokenizer")
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    ours = Tokenizer.load(folder)
    for text in SAMPLES:
        assert ours.encode(text) == expected.encode(text)


def test_code_beside_a_gguf_file_is_not_run(folder, marker, unread_yes):
    """transformers looks for a tokenizer_config.json there, too."""
    path, vocabulary = folder / "model.gguf", byte_level().get_vocab()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges(["h e", "Ġ t", "ð Ł"])
    writer.add_eos_token_id(END)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    with suppress(ModelError):
        Tokenizer.load(path)


def test_code_beside_a_model_is_not_run(pairs, folder, marker, unread_yes):
    shutil.copytree(pairs("llama").folder, folder, dirs_exist_ok=True)
    every = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    rewrite(folder / "config.json", auto_map=every)
    rewrite(folder / "generation_config.json", custom_generate="own")
    assert weights.load(folder).config == pairs("llama").ours.config
    assert Tokenizer.load(folder).vocabulary_size == END + 1
    rewrite(folder / "config.json", model_type="own")
    with pytest.raises(ModelError, match="model type 'own' is not supported"):
        weights.load(folder)
