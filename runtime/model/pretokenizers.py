"""How GGUF's byte-pair tokenizers cut a text into words, within which alone they merge.

A file names its cut in tokenizer.ggml.pre. Names, patterns and defaults are those of llama.cpp
(src/llama-vocab.cpp) with what its own matching makes of them (src/unicode.cpp): \\p{Lu} and its
like stand there for any letter. A pattern sees only the pieces that the one before it left, and
what it does not match stays a piece. Knows text only, no vocabulary. Letters that are newer than
Unicode 15 may be cut otherwise.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

UNNAMED = "default"  # what a file without the field is cut by
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
ANY, BREAKS = r"(?s:.+)", r"\n+"

_ENDING = "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"  # of English words
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_SPACES = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_REST = rf"{_MARKS}[\r\n]*|{_LINES}"
_REST_OR_SLASH = rf"{_MARKS}[\r\n/]*|{_LINES}"
_SYMBOLS_AND_WORDS = (
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
)
_GPT2 = rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+|{_MARKS}|{_SPACES}"
_LLAMA3 = rf"{_ENDING}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_ENDING}|{_WORD}|\p{{N}}|{_REST}"
_BLOOM = r" ?[^(\s|.,!?)\x{60C}\x{6D4}\x{964}\x{2026}\x{3001}\x{3002}\x{FF0C}]+"
# threes from the right, the first group with all that stands before it
_THREES = r"(?:\A|(?<=\p{N}))\P{N}*+\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_HAN = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}"
    r"\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
)
_HAN_OR_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
_EAST_ASIAN = r"[[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]&&\S]+"
# cased letters but for the alphabets that the list leaves out
_CASED_LETTER = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8F}"
    r"\x{2D00}-\x{2D2D}\x{A790}-\x{AB6F}\x{10570}-\x{105BF}\x{10D50}-\x{10D8F}"
    r"\x{16E40}-\x{16E7F}\x{1D400}-\x{1DFFF}]]"
)
_LONG_TO_SHORT_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))


def _cased_word(letter: str, ending: str) -> str:
    """Words that capitals begin: ASCII ones, other alphabets' capitals part no words."""
    not_small, not_capital = rf"[{letter}&&[^a-z]]", rf"[{letter}&&[^A-Z]]"
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{not_small}*{not_capital}+{ending}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{not_small}+{not_capital}*{ending}"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """The cut of one or several names, and what else they say of a file that does not."""

    patterns: tuple[str, ...]
    whole: str | None = None  # words that, being tokens, are those, whatever the merges say
    adds_bos: bool = False  # unless the file says otherwise
    must_add_bos: bool = False  # whatever the file says
    has_bos: bool = True  # even if the file names none
    is_raw: bool = False  # tokens are plain text, not bytes as letters
    marks_spaces: bool = False  # a space is ▁
    marks_lines: bool = False  # every line begins with ▁

    @cached_property
    def _splitter(self) -> Any:
        from tokenizers import Regex, pre_tokenizers

        return pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        )

    def words(self, text: str) -> list[str]:
        """The words of a text, which joined are the text but for the marks."""
        if self.marks_spaces:
            text = text.replace(" ", SPACE_MARK)
        if self.marks_lines:
            text = re.sub(rf"(?:^|(?<=\n))(?=[^\n{SPACE_MARK}])", SPACE_MARK, text)
        return [word for word, _ in self._splitter.pre_tokenize_str(text)]

    def takes_whole(self, word: str) -> bool:
        """Whether a word that is a token is not to be split."""
        return self.whole is not None and re.fullmatch(self.whole, word) is not None


def _row(names: str, *patterns: str, **said: Any) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), PreTokenizer(patterns, **said))


_BY_NAME = (
    _row("default", r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9]{3}")
    | _row(
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe "
        "gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo jais trillion granite-docling",
        _GPT2,
    )
    | _row("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", r"\p{N}", _GPT2)
    | _row("falcon", r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9]{3}")
    | _row(
        "chameleon",
        r"IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
        adds_bos=True,
    )
    | _row(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        whole=ANY,
        adds_bos=True,
    )
    | _row("dbrx smaug-bpe", _LLAMA3)
    | _row("chatglm-bpe", _LLAMA3, has_bos=False)
    | _row("glm4 glm5", _LLAMA3, has_bos=False, whole=ANY)
    | _row(
        "jais-2",
        rf"{_ENDING}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|\s*[\r\n]+"
        rf"|{_LONG_TO_SHORT_SPACES}|\s{{1,2}}(?!\S)|\s",
    )
    | _row(
        "k2-horizon",
        rf"'\x{{17F}}|{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}\x{{200C}}\x{{200D}}]+"
        rf"|\p{{N}}{{1,3}}|{_REST}",
    )
    | _row(
        "kimi-k2",
        rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_ENDING})?"
        rf"|\p{{N}}{{1,3}}|{_REST}",
    )
    | _row(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN2
    )
    | _row(
        "qwen35",
        rf"{_ENDING}|{_MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",
    )
    | _row("ufakzeka", rf"{_WORD}|\p{{N}}|{_REST}")
    | _row("laguna", BREAKS, _QWEN2)
    | _row("minicpm5", r"\p{N}{1,3}", rf"{_ENDING}|{_WORD}|\p{{N}}+|{_REST}", whole=ANY)
    | _row("seed-coder", rf"{_ENDING}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}")
    | _row(
        "bailingmoe bailingmoe2 llada-moe",
        rf"{_ENDING}|{_WORD}|\p{{N}}|{_MARKS}[\r\n]*|\s*[\r\n]|{_SPACES}",
    )
    | _row(
        "exaone-moe",
        rf"{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
        rf"|\p{{N}}|{_MARKS}[\r\n/]?|\s*[\r\n]|{_SPACES}",
    )
    | _row(
        "tekken",
        _cased_word(r"\p{L}", "") + rf"|\p{{N}}|{_REST_OR_SLASH}",
        whole=ANY,
        adds_bos=True,
    )
    | _row(
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        _cased_word(r"\p{L}", f"(?:{_ENDING})?") + rf"|\p{{N}}{{1,3}}|{_REST_OR_SLASH}",
    )
    | _row(
        "granite-embed-multi-97m",
        _cased_word(r"[\p{L}\p{M}]", f"(?:{_ENDING})?") + rf"|\p{{N}}{{1,3}}|{_REST_OR_SLASH}",
        whole=ANY,
    )
    | _row(
        "tiny_aya cohere2moe",
        _THREES,
        rf"{_MARKED_WORD}(?:{_ENDING})?|\p{{N}}{{1,3}}|{_REST_OR_SLASH}",
    )
    | _row(
        "youtu",
        r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
        r"|[\x{2014}\x{2018}\x{2019}\x{201C}\x{201D}\x{2026}\x{3001}-\x{303F}"
        r"\x{FE30}-\x{FE4F}\x{FF01}\x{FF0C}\x{FF1A}\x{FF1B}]+"
        rf"|[\x{{3105}}-\x{{312F}}]+|{_HAN_OR_KANA}",
        rf"{_MARKED_WORD}(?:{_ENDING})?|\p{{N}}|{_REST_OR_SLASH}",
        whole=ANY,
    )
    | _row(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        r"\p{N}{1,3}",
        _HAN_OR_KANA,
        rf"{_SYMBOLS_AND_WORDS}[\r\n]*|{_LINES}",
    )
    | _row(
        "spark2_5",
        r"\p{N}",
        _HAN_OR_KANA,
        rf"{_SYMBOLS_AND_WORDS}|[\r\n]|{_SPACES}",
    )
    | _row(
        "afmoe",
        _THREES,
        r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}"
        r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{EFF}\x{1780}-\x{17FF}"
        r"\x{1000}-\x{109F}\x{1100}-\x{11FF}]+",
        rf"{_SYMBOLS_AND_WORDS}[\r\n]*|{_LINES}",
    )
    | _row(
        "deepseek-llm",
        r"[\r\n]",
        rf"\s?{_CASED_LETTER}+",
        r"\s?[!-/:-~\x{2018}-\x{201F}\x{3001}\x{3002}\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}]+",
        r"(?<!\s)\s++\z",
        _EAST_ASIAN,
        r"\p{N}+",
    )
    | _row("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")
    | _row("poro-chat bloom gpt3-finnish", _BLOOM)
    | _row("viking", _BLOOM, r"\p{N}")
    | _row("superbpe", r"\p{N}+", r"(?=(?:[0-9]{3})+(?![0-9]))")
    | _row(
        "gemma4 granite-embed-multi-311m",
        BREAKS,
        whole=BREAKS,
        must_add_bos=True,
        is_raw=True,
        marks_spaces=True,
    )
    | _row("sarvam-moe", BREAKS, is_raw=True, marks_spaces=True)
    | _row(
        "mmbert",
        rf"{SPACE_MARK}[^\n{SPACE_MARK}]*",
        whole=BREAKS,
        is_raw=True,
        marks_spaces=True,
        marks_lines=True,
    )
    | _row("whitespace", r"\S+", is_raw=True)
)


def named(name: str) -> PreTokenizer:
    """The cut of a name in tokenizer.ggml.pre. Raises ValueError for one that is not known."""
    try:
        return _BY_NAME[name or UNNAMED]
    except KeyError:
        raise ValueError(
            f"metadata field tokenizer.ggml.pre is {name!r:.80}, "
            "a way to split text that is not known"
        ) from None
