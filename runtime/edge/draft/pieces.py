"""One vocabulary by what its tokens spell: bytes to tokens within a text, and tokens to bytes.

Where two vocabularies meet, a text is cut at places where neither tokenizer would cut it: within
words, and within characters. Knows no model and no second vocabulary.
"""

import re
from functools import lru_cache

from runtime.model.tokenizer import Tokenizer

LONGEST_PIECE_BYTES = 64  # a longer one, a run of blanks, is never drafted
CACHED_TEXTS, CACHED_BYTES = 1 << 14, 64
# bytes that are no character, as Python's decoder marks them
_RAW = re.compile("([\udc80-\udcff]+)")


class Pieces:
    """The tokens of a tokenizer below `rows`. Its tokenizer is nobody else's: threads do not mix.

    spelled   bytes by id, within a text; None where a token has none
    control   spelling by id, of tokens that are no part of a text
    """

    def __init__(self, tokenizer: Tokenizer, rows: int):
        spelling = tokenizer.token_bytes
        self._tokenizer = tokenizer
        self.spelled = [spelling.get(index, first=False) or None for index in range(rows)]
        self.control = {index: tokenizer.token(index) for index in spelling.control if index < rows}
        self._of_bytes: dict[bytes, int] = {}  # the first of those that spell the same
        for index, piece in enumerate(self.spelled):
            if piece is not None:
                self._of_bytes.setdefault(piece, index)
        self._cached = lru_cache(CACHED_TEXTS)(self._encode)

    def of_bytes(self, piece: bytes) -> int | None:
        """The token that spells just that."""
        return self._of_bytes.get(piece)

    def encode(self, data: bytes) -> list[int]:
        """The tokens of bytes that stand within a text, and may begin or end within a character.

        Bytes for which there is no token are left out.
        """
        return list(self._cached(data) if len(data) <= CACHED_BYTES else self._encode(data))

    def opening(self) -> list[int]:
        """The tokens that this vocabulary wants in front of every text."""
        return self._known(self._tokenizer.encode(""))

    def _encode(self, data: bytes) -> tuple[int, ...]:
        if (whole := self._of_bytes.get(data)) is not None:
            return (whole,)
        ids: list[int] = []
        for place, part in enumerate(_RAW.split(data.decode("utf-8", errors="surrogateescape"))):
            if not part:
                continue
            is_raw = place % 2
            ids += self._raw(part) if is_raw else self._text(part)
        return tuple(ids)

    def _raw(self, part: str) -> list[int]:
        data = part.encode("utf-8", errors="surrogateescape")
        whole = self._of_bytes.get(data)
        if whole is not None:
            return [whole]
        found = [self._of_bytes.get(data[place : place + 1]) for place in range(len(data))]
        return [index for index in found if index is not None]

    def _text(self, text: str) -> list[int]:
        """As it is encoded behind another one, with which it does not make one token."""
        anchor = "0" if text[0].isspace() else "\n"
        before = self._tokenizer.encode(anchor, special=False)
        ids = self._tokenizer.encode(anchor + text, special=False)
        if ids[: len(before)] == before:
            return self._known(ids[len(before) :])
        return self._known(self._tokenizer.encode(text, special=False))

    def _known(self, ids: list[int]) -> list[int]:
        return [index for index in ids if 0 <= index < len(self.spelled)]


def whole_characters(data: bytes) -> bytes:
    """Bytes without a character at their end whose last byte has yet to come."""
    for behind in range(1, min(len(data), 3) + 1):
        byte = data[-behind]
        if byte >= 0xC0:  # the first of a character of two, three or four
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-behind] if length > behind else data
        if byte < 0x80:
            break
    return data
