"""Random small GGUF files over all that a tokenizer reads of them, and texts to try them on.

Valid for llama.cpp, with which `compare` holds the tokenizer of a file: ids, texts and stops.
"""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers.convert_slow_tokenizer import bytes_to_unicode

from runtime.model.config import ModelError
from runtime.model.tokenizer import Tokenizer
from tests.model.llama_cpp_vocab import LlamaCpp

# ruff: noqa: RUF001, letters that look like others are what is tried here

LETTERS = bytes_to_unicode()


def words(text: str) -> list[str]:
    return text.split()


# Every name that llama.cpp knows but "whitespace", with which it aborts at two spaces.
NAMES = [
    None,
    *words("""
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe
    command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone
    exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o
    gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan
    hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es
    jina-v5-nano joyai-llm k2-horizon kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe
    llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 mmbert
    modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
    seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken
    tiny_aya trillion ufakzeka viking youtu
"""),
    "no-such-name",
]
RAW = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "mmbert")

# Parts of texts. No two letters may be newer than Unicode 15, which llama.cpp's tables end with.
LETTERLIKE = words("""
    a b c x ab abc abcd bcd A B AB xY camelCase HTTPServer é É ß ñandú ŁĘ ǅ ʰ ª ℝ ա ა Ა ꞏ 𝒜 𐐀 𞤀
    Привет ελ עב عربي हिन्दी ไทย ລາວ ខ្មែ မြန် 日本 漢字 豈 𠀀 か カ ｶ 한국 ㄱ ㄅ ᄀ fi ﬁ
""")
NUMBERS = words("0 7 12 123 1234 1234567 100000 ١٢٣ १२ Ⅷ ½ ² ㉈ 𝟙")
ENDINGS = words("'s 'S 't 're 'RE 'Ve 'll 'LL 'd 'm ' ’s 'ſ ''")
SPACES = [" ", " ", "  ", "   ", "    ", " " * 9, "\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\x0b"]
SPACES += ["\x0c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\n\n\n \n"]
SYMBOLS = words("""
    . , ! ? ... !? $ + = ~ ` ^ | < > ( ) [ ] { } _ - -- / // \\ @ # % & * ; : " << **2 € © ° 。 、
    ， ！ ： 「 “ ‘ — … । ۔ ، ～ → ∑ ▁ ▁▁ 😀 👩\u200d👩 👍🏽 \ufe0f \u0301 e\u0301 \u200b \u200c
    \u200d \ufffd \ue000
""")
CONTROLS = ["\x00", "\x01", "\x1c", "\x1f", "\x7f", "\xad", "\ufeff"]
SPELLED = words("""
    <sentinel:12> IMGIMGABZ IMGIMGABCDEZ <0x41> <0x0A> [PAD5] [EMPTY_3] <|im_start|> <|im_end|>
    <s> </s> <unk> <|end|> <tool> <|channel|>
""")
PARTS = [
    LETTERLIKE,
    LETTERLIKE,
    NUMBERS,
    ENDINGS,
    SPACES,
    SPACES,
    SYMBOLS,
    SYMBOLS,
    CONTROLS,
    SPELLED,
]

# What random parts seldom bring together.
FIXED = [
    *(" " * n + "x" for n in (5, 15, 31, 62, 130, 300, 600)),
    "aBc AbC ABc/Éf/ÉF!/\n//\r\nx?/y xYZ'sA'Re ÉÈéÈ Éé a\u0301Bc\u0301D \u0301IMG",
    "a's b'S c'Re d'LL'd 's'T 'vEx x'ſb 'rx 'lx 'sx it''s",
    "1234567 12345x12 1ab2345678 ١٢٣٤5 ½²7 a12",
    " \r x \r\n y\n \n\t z\r\r.\r\n\n!\nq \x0b\nq\u3000\n\u3000r",
    "<sentinel:12>IMGIMGABZ xIMGIMGIZ<sentinel:x>IMGIMGJZ a-b(c) a    b   c\t  d",
    "e\u0301a \u0301b\u0301\u0301! \u0301! a b c\u0301 d\u200ce\u200d \u200cf",
    "ㄅㄆabㄱㄲ가漢字abc漢!漢あアｱ、！ 。가나x한",
    "~a ~é $a $é `x` |a|b| <=> +1 ^2 a_b €5 (a) [b] \x01\x02 \x7fa\x80",
]

USER_DEFINED = [
    "<tool>",
    "  ",
    "   ",
    "\n\n",
    "é",
    "日本",
    "łę",
    "ab",
    "bcd",
    "abcde",
    "▁▁",
    "12",
    "x  y",
]
CONTROL = words("""
    <|im_start|> <|im_end|> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <s> </s> <unk>
    <pad> <|end|> <|return|> <|call|> <|calls|> <|flush|> <|tool_response> <|plamo:eos|>
    <|ifm|im_end|> <|channel|> <|message|> <|start|> <|constrain|> <end_of_turn>
    <end_of_utterance> <EOT> _<EOT> [EOT] [EOS] <eos> <turn|> [e~[ <mask> <|unused_1|> [PAD5]
""")
# With two texts of one role llama.cpp takes that which its hash table has first.
ONE_OF = """
    <|fim_prefix|> <fim-prefix> <PRE> <|prefix|>
    <|fim_suffix|> <fim_suffix> ▁<SUF> <|code_suffix|>
    <|fim_middle|> <MID> <|plamo:fim_middle|> <|middle|>
    <|fim_pad|> <fim-pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <REPO> <reponame>
    <|file_sep|> <|plamo:file_separator|>
""".strip().splitlines()  # fmt: skip
PHI3 = ["<|endoftext|>", "<s>", "</s>", "<unk>"]  # which llama.cpp looks for in a file called so

NORMAL, UNKNOWN, CONTROL_KIND, USER_KIND, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROLES = ["bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask"]
ROLES += [
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
    "prefix",
    "suffix",
    "middle",
]


@dataclass(frozen=True)
class Case:
    """The metadata of a file, and texts."""

    metadata: dict[str, Any]
    texts: list[str]

    @property
    def drops_first_space(self) -> bool:
        """What sentence pieces put in front of a text is taken off again."""
        is_pieces = self.metadata["tokenizer.ggml.model"] == "llama"
        return is_pieces and self.metadata.get("tokenizer.ggml.add_space_prefix", True)


def case(seed: int) -> Case:
    """One of three is of sentence pieces, and the others go through all names in turn."""
    rng = random.Random(seed)
    texts = [random_text(rng) for _ in range(12)]
    if seed % 3 == 0:
        tokens, fields = sentence_pieces(rng, texts)
    else:
        tokens, fields = byte_pairs(rng, texts, NAMES[(seed - seed // 3 - 1) % len(NAMES)])
    add_special_tokens(rng, tokens)
    listed = list(tokens)
    rng.shuffle(listed)
    fields["tokens"] = listed
    if rng.random() < 0.9:
        fields["token_type"] = [tokens[token] for token in listed]
    if seed % 3 == 0 and rng.random() < 0.9:
        fields["scores"] = [rng.choice((rng.uniform(-9, 0), -1.5, 0.0)) for _ in listed]
    add_roles(rng, fields, len(listed))
    metadata: dict[str, Any] = {"general.architecture": "llama"}
    # Of tokens of one length, any may be cut first, and then take the space that is another one.
    strips = set(PHI3) <= set(listed) and not any(token.isspace() for token in listed)
    if strips and rng.random() < 0.8:
        metadata["general.name"] = rng.choice(("My Phi-3 mini", "phi3"))
    return Case(metadata | {f"tokenizer.ggml.{name}": fields[name] for name in fields}, texts)


def case_of_name(name: str | None, seed: int) -> Case:
    """Many texts, and merges that cross every border of theirs but those that the name makes."""
    rng = random.Random(f"{name} {seed}")
    texts = [*FIXED, *(random_text(rng) for _ in range(20))]
    if name in RAW:
        spelled = [text.replace(" ", "▁") for text in texts]
        # words of such files begin with a mark that a text may lack
        spelled = ["".join(f"▁{line}" for line in text.splitlines(True)) for text in spelled]
    else:
        spelled = ["".join(LETTERS[byte] for byte in text.encode()) for text in texts]
    merges: list[str] = []
    # What has grown grows on, so that few borders stay between merges.
    for size in (7, 6, 5, 4, 3, 2):
        parts = {text[i : i + size] for text in spelled for i in range(len(text) - size + 1)}
        parts = {part for part in parts if size < 5 or len(set(part)) == 1}
        listed = sorted(part for part in parts if "\0" not in part)
        rng.shuffle(listed)
        merges += [f"{part[:-1]} {part[-1]}" for part in listed]
    alphabet = sorted({*LETTERS.values(), *"".join(spelled)} - {"\0"})
    tokens = list(dict.fromkeys([*alphabet, *(merge.replace(" ", "") for merge in merges)]))
    fields: dict[str, Any] = {"model": "gpt2", "tokens": tokens, "merges": merges}
    if name is not None:
        fields["pre"] = name
    metadata = {f"tokenizer.ggml.{field}": value for field, value in fields.items()}
    return Case({"general.architecture": "llama"} | metadata, texts)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(rng.choice(PARTS)) for _ in range(rng.randrange(14)))


def sentence_pieces(rng: random.Random, texts: list[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Pieces of the texts, some without the pieces that they are made of, and all bytes."""
    marked = [[*("▁" + text).replace(" ", "▁")] for text in texts]
    joined = ["".join(pair) for pair in learned(rng, marked)]
    characters = sorted({character for text in marked for character in text} - {"\0"})
    known = rng.sample(characters, rng.randrange(len(characters) + 1))
    tokens = dict.fromkeys(["▁", *known, *joined], NORMAL)
    tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    fields: dict[str, Any] = {"model": "llama"}
    if rng.random() < 0.5:
        fields["add_space_prefix"] = rng.random() < 0.3
    if rng.random() < 0.2:
        fields["pre"] = rng.choice(["default", "smollm", "no-such-name"])
    return tokens, fields


def byte_pairs(
    rng: random.Random, texts: list[str], name: str | None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Merges learned across the borders of words, so that every border shows in the ids."""
    raw = name in RAW
    if raw:
        spelled = [[*text.replace(" ", "▁")] for text in texts]
        alphabet = sorted({character for text in spelled for character in text} - {"\0"} | {"▁"})
    else:
        spelled = [[LETTERS[byte] for byte in text.encode()] for text in texts]
        alphabet = list(LETTERS.values())
    merges = learned(rng, spelled)
    if rng.random() < 0.3:
        rng.shuffle(merges)
    tokens = dict.fromkeys([*alphabet, *map("".join, merges)], NORMAL)
    if raw and rng.random() < 0.7:
        tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    for token in rng.sample(list(tokens), rng.choice((0, 0, 3, 30))):
        del tokens[token]
    listed = [" ".join(pair) for pair in merges]
    listed += rng.choices(listed, k=rng.choice((0, 5))) + ["no such"] * rng.randrange(2)
    fields: dict[str, Any] = {"model": "gpt2", "merges": listed}
    if name is not None:
        fields["pre"] = name
    if rng.random() < 0.1:
        fields["add_space_prefix"] = rng.random() < 0.5
    return tokens, fields


def learned(rng: random.Random, texts: list[list[str]]) -> list[tuple[str, str]]:
    """Pairs of neighbours at random, each joined wherever it is before the next is chosen.

    None holds a NUL, where llama.cpp ends the text of a token.
    """
    texts, pairs = [text for text in texts if len(text) > 1], dict[tuple[str, str], None]()
    for _ in range(rng.choice((20, 120, 250)) if texts else 0):
        text = rng.choice(texts)
        if len(text) < 2:
            continue
        place = rng.randrange(len(text) - 1)
        pair = (text[place], text[place + 1])
        if "\0" in "".join(pair):
            continue
        pairs[pair] = None
        texts = [joined(text, pair) for text in texts]
    return list(pairs) or [("a", "b")]


def joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def add_special_tokens(rng: random.Random, tokens: dict[str, int]) -> None:
    """Some of either kind, mostly as their texts promise; one token of the others is re-made."""
    chosen = [(text, USER_KIND) for text in USER_DEFINED if rng.random() < 0.2]
    chosen += [(text, CONTROL_KIND) for text in CONTROL if rng.random() < rng.choice((0.1, 0.5))]
    chosen += [(rng.choice(texts.split()), CONTROL_KIND) for texts in ONE_OF if rng.random() < 0.3]
    if rng.random() < 0.15:
        chosen += [(text, CONTROL_KIND) for text in PHI3]
    for text, kind in chosen:
        if text not in tokens:
            other = rng.choice((0, NORMAL, UNKNOWN, USER_KIND, UNUSED))
            tokens[text] = kind if rng.random() < 0.8 else other
    # A longer one could overlap another of its size, and llama.cpp's order among them is open.
    single = [token for token in tokens if len(token) == 1 and tokens[token] == NORMAL]
    if single and rng.random() < 0.3:
        tokens[rng.choice(single)] = rng.choice((0, UNKNOWN, CONTROL_KIND, USER_KIND, UNUSED))


def add_roles(rng: random.Random, fields: dict[str, Any], size: int) -> None:
    for role in ROLES:
        if rng.random() < (0.6 if role in ("bos", "eos") else 0.15):
            fields[f"{role}_token_id"] = rng.randrange(size) if rng.random() < 0.95 else size + 3
    for name in ("add_bos_token", "add_eos_token"):
        if rng.random() < 0.4:
            fields[name] = rng.random() < 0.5


def write(path: Path, metadata: dict[str, Any]) -> None:
    """A file of metadata alone."""
    kinds = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            kind = kinds.STRING if isinstance(value, str) else kinds.UINT32
            writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def compare(seed: int, llama_cpp: LlamaCpp) -> None:
    """Raises AssertionError if the tokenizer of the file of this seed differs from llama.cpp's."""
    compare_case(case(seed), f"seed {seed}", llama_cpp)


def compare_case(made: Case, told: str, llama_cpp: LlamaCpp) -> None:
    """Raises AssertionError, which begins with `told`, if the two differ."""
    told = f"{told}, {described(made.metadata)}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(path, made.metadata)
        theirs = llama_cpp.read(path, made.texts)
        ours, refusal = loaded(path)
    assert isinstance(theirs, str) == (ours is None), f"{told}: {refusal} / {theirs}"
    if ours is None or isinstance(theirs, str):
        return
    assert ours.vocabulary_size == len(theirs.pieces) == len(made.metadata["tokenizer.ggml.tokens"])
    assert ours.stop_ids == theirs.stop_ids, (
        f"{told}: stops {named(made, ours.stop_ids)}, llama.cpp {named(made, theirs.stop_ids)}"
    )
    for text, expected in zip(made.texts, theirs.ids, strict=True):
        ids = ours.encode(text)
        assert ids == expected, (
            f"{told}, {text!r}: ids of {named(made, ids)}, llama.cpp {named(made, expected)}"
        )
    some = random.Random(told).sample(range(ours.vocabulary_size), min(ours.vocabulary_size, 400))
    for ids in [*theirs.ids, *([index] for index in some)]:
        check_text(made, ours, theirs.pieces, ids, told)


def loaded(path: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or why there is none."""
    try:
        return Tokenizer.load(path), "loads"
    except ModelError as error:
        return None, str(error)


def check_text(made: Case, ours: Tokenizer, pieces: list[bytes], ids: list[int], told: str) -> None:
    expected = b"".join(pieces[index] for index in ids)
    if b"[UNK_BYTE" in expected:  # llama.cpp's word for a token that spells no bytes
        return
    if made.drops_first_space:
        expected = expected.removeprefix(b" ")
    text = ours.decode(ids)
    assert text == expected.decode(errors="replace"), (
        f"{told}, {named(made, ids)}: text {text!r}, llama.cpp {expected!r}"
    )


def named(made: Case, ids: Any) -> list[str]:
    tokens = made.metadata["tokenizer.ggml.tokens"]
    return [f"{index}:{tokens[index]!r}" for index in ids]


def described(metadata: dict[str, Any]) -> str:
    """All of a file's fields but the lists."""
    return ", ".join(
        f"{key.removeprefix('tokenizer.ggml.')}={value!r}"
        for key, value in metadata.items()
        if not isinstance(value, list)
    )
