"""The tokenizer of a GGUF file: text to ids and back, as llama.cpp does it.

Two kinds: byte pairs, merged by rank within words, and sentence pieces, merged by score within
the whole text. It has the part of transformers' interface that runtime.model.tokenizer uses.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from heapq import heappop, heappush
from pathlib import Path

from runtime.model.config import ModelError
from runtime.model.gguf_config import Metadata
from runtime.model.gguf_vocabulary import SPECIAL, Kind, Vocabulary
from runtime.model.pretokenizers import SPACE_MARK
from runtime.model.text_stream import BYTE_OF, BYTE_TOKEN

ASCII_SPACE = " \t\n\v\f\r"
CACHED_WORDS, CACHED_LETTERS = 1 << 14, 64

_LETTERS = {byte: letter for letter, byte in BYTE_OF.items()}

Priority = Callable[[str, str], float | None]


def gguf_tokenizer(path: Path) -> "GgufTokenizer":
    """The tokenizer of a .gguf file. Raises ModelError where it has none that can be read."""
    metadata = Metadata(path)
    try:
        vocabulary = Vocabulary(metadata)
    except ValueError as error:
        raise ModelError(f"{path} has no readable tokenizer: {error}") from None
    return GgufTokenizer(vocabulary, _chat_templates(metadata))


class GgufTokenizer:
    """Text to ids and back. Control tokens that a text spells are those tokens.

    stop_ids: tokens that end an answer. unused_ids: tokens that only fill the list.
    chat_template: Jinja source, or several by name. token_bytes: what each token adds to a text.
    """

    def __init__(self, vocabulary: Vocabulary, chat_template: str | dict[str, str] | None):
        self._vocabulary, self.chat_template = vocabulary, chat_template
        byte_pairs = vocabulary.pre_tokenizer is not None
        self._text_ids = _BytePairs(vocabulary) if byte_pairs else _SentencePieces(vocabulary)
        # llama.cpp looks for the longest first, wherever they lie
        self._special_ids = sorted(
            vocabulary.ids_of(*SPECIAL), key=lambda index: -len(vocabulary.tokens[index].encode())
        )
        self.stop_ids = vocabulary.stop_ids
        self.unused_ids = frozenset(vocabulary.ids_of(Kind.UNUSED))
        self.token_bytes = GgufTokenBytes(vocabulary)
        self.special_tokens_map = _special_tokens(vocabulary)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; `add_special_tokens`: with the first and last that the file wants."""
        vocabulary, ids = self._vocabulary, list[int]()
        if add_special_tokens and vocabulary.adds_bos:
            ids.append(vocabulary.roles["bos"])
        for part in self._parts(text):
            ids.extend([part] if isinstance(part, int) else self._text_ids(part))
        if add_special_tokens and vocabulary.adds_eos:
            ids.append(vocabulary.roles["eos"])
        return ids

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocabulary.ids)

    def convert_ids_to_tokens(self, index: int) -> str | None:
        tokens = self._vocabulary.tokens
        return tokens[index] if 0 <= index < len(tokens) else None

    def __len__(self) -> int:
        return len(self._vocabulary.tokens)

    def _parts(self, text: str) -> list[str | int]:
        """The text cut at its special tokens, which are given as their ids."""
        parts: list[str | int] = [text] if text else []
        for index in self._special_ids:
            if self._vocabulary.tokens[index] in text:
                parts = [
                    piece
                    for part in parts
                    for piece in ([part] if isinstance(part, int) else self._cut(part, index))
                ]
        return parts

    def _cut(self, text: str, index: int) -> list[str | int]:
        token = self._vocabulary.tokens[index]
        pieces, start = list[str | int](), 0
        while (place := text.find(token, start)) >= 0:
            piece = text[start:place]
            if index in self._vocabulary.strips_before:
                piece = piece.rstrip(ASCII_SPACE)
            pieces += [piece, index]
            start = place + len(token)
            if index in self._vocabulary.strips_after:
                start = len(text) - len(text[start:].lstrip(ASCII_SPACE))
        return [piece for piece in [*pieces, text[start:]] if piece != ""]


class _BytePairs:
    """Ids of a text by byte-pair merges."""

    def __init__(self, vocabulary: Vocabulary):
        assert vocabulary.pre_tokenizer is not None
        self._cut, self._ids = vocabulary.pre_tokenizer, vocabulary.ids
        ranks = range(len(vocabulary.merges) - 1, -1, -1)
        # of a merge that is listed twice the first rank counts
        self._ranks = dict(zip(reversed(vocabulary.merges), ranks, strict=True))
        self._cached = lru_cache(CACHED_WORDS)(self._word_ids)

    def __call__(self, text: str) -> list[int]:
        words = self._cut.words(text)
        if not self._cut.is_raw:
            words = [word.encode().decode("latin-1").translate(_LETTERS) for word in words]
        ids = list[int]()
        for word in words:
            ids += self._cached(word) if len(word) <= CACHED_LETTERS else self._word_ids(word)
        return ids

    def _word_ids(self, word: str) -> list[int]:
        if self._cut.takes_whole(word) and word in self._ids:
            return [self._ids[word]]
        ids = list[int]()
        for symbol in merged(list(word), self._rank):
            ids += [self._ids[symbol]] if symbol in self._ids else self._spelled(symbol)
        return ids

    def _rank(self, left: str, right: str) -> float | None:
        return self._ranks.get(f"{left} {right}")

    def _spelled(self, symbol: str) -> list[int]:
        """A symbol that is no token, by those tokens that there are for parts of it."""
        if self._cut.is_raw:
            parts = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        else:
            parts = [letter for letter in symbol if letter.isascii()]
        return [self._ids[part] for part in parts if part in self._ids]


class _SentencePieces:
    """Ids of a text by merges into pieces of the highest score."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary, self._ids = vocabulary, vocabulary.ids

    def __call__(self, text: str) -> list[int]:
        text = (" " + text if self._vocabulary.adds_space else text).replace(" ", SPACE_MARK)
        ids = list[int]()
        for piece in merged(list(text), self._loss):
            ids += [self._ids[piece]] if piece in self._ids else self._spelled(piece)
        return ids

    def _loss(self, left: str, right: str) -> float | None:
        index = self._ids.get(left + right)
        return None if index is None else -self._vocabulary.scores[index]

    def _spelled(self, character: str) -> list[int]:
        """The tokens of its bytes, or the unknown one where a byte has none."""
        names = [f"<0x{byte:02X}>" for byte in character.encode()]
        if all(name in self._ids for name in names):
            return [self._ids[name] for name in names]
        unknown = self._vocabulary.roles.get("unknown")
        return [] if unknown is None else [unknown]


def merged(symbols: list[str], priority: Priority) -> list[str]:
    """Symbols with neighbours joined, the lowest priority first, the leftmost of equals.

    priority: of a pair of neighbours; None for those that are not to be joined.
    """
    before, after = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
    after[-1:] = [-1] * bool(symbols)
    queue = list[tuple[float, int, int, int]]()

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            value = priority(symbols[left], symbols[right])
            if value is not None:
                size = len(symbols[left]) + len(symbols[right])
                heappush(queue, (value, left, right, size))

    for left in range(len(symbols) - 1):
        consider(left, left + 1)
    while queue:
        _, left, right, size = heappop(queue)
        # what was joined into another symbol is empty, and what grew no longer has this size
        if not symbols[left] or not symbols[right]:
            continue
        if len(symbols[left]) + len(symbols[right]) != size:
            continue
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        consider(before[left], left)
        consider(left, after[left])
    return [symbol for symbol in symbols if symbol]


class GgufTokenBytes:
    """What each token adds to a text, in bytes; None where it is no part of a text."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self.control = frozenset(vocabulary.ids_of(Kind.UNKNOWN, Kind.CONTROL))

    def get(self, index: int, first: bool) -> bytes | None:
        """The bytes of a token; `first`: of the text, which drops the space that was added."""
        spelled = self._spelled(index) if 0 <= index < len(self._vocabulary.tokens) else None
        if spelled and first and self._vocabulary.adds_space:
            return spelled.removeprefix(b" ")
        return spelled

    def _spelled(self, index: int) -> bytes | None:
        token, kind = self._vocabulary.tokens[index], self._vocabulary.kinds[index]
        if kind == Kind.BYTE and (named := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(named[1], 16)])
        if kind in (Kind.BYTE, Kind.USER_DEFINED):
            return token.encode()
        if kind != Kind.NORMAL:
            return None
        cut = self._vocabulary.pre_tokenizer
        if cut is not None and not cut.marks_spaces:
            return _from_letters(token)
        return token.replace(SPACE_MARK, " ").encode()


def _from_letters(token: str) -> bytes:
    """The bytes that GPT-2's alphabet writes, or the text itself where it is not in that."""
    if not set(token) <= BYTE_OF.keys():
        return token.encode()
    return bytes(BYTE_OF[letter] for letter in token)


def _chat_templates(metadata: Metadata) -> str | dict[str, str] | None:
    """The chat template, or all of them by name where there are others than the default one."""
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).lstrip(".") or "default": str(template)
        for key, template in metadata.header.metadata.items()
        if key == prefix or key.startswith(f"{prefix}.")
    }
    return templates if templates.keys() - {"default"} else templates.get("default")


def _special_tokens(vocabulary: Vocabulary) -> Mapping[str, str]:
    """What chat templates know by name."""
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return {
        f"{name}_token": vocabulary.tokens[vocabulary.roles[role]]
        for role, name in names.items()
        if role in vocabulary.roles
    }
