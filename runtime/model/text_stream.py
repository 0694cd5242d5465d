"""Token ids to text while they come: the bytes that each token stands for, and characters of them.

A character may be spread over several tokens, so text is made of bytes; what a tokenizer's own
decoder does to tokens (spaces for their marks, none in front of the text) is asked of it, token by
token. Knows nothing of models and requests.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

# A text that no decoder changes, in front of the token that is asked about.
_ANCHOR = "a"

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(0x100) if byte not in _VISIBLE]
# GPT-2's alphabet: visible bytes are their own symbols, the others follow from U+0100 on.
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(_HIDDEN)
}
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(Protocol):
    """What each token of a vocabulary adds to a text."""

    @property
    def control(self) -> Collection[int]:
        """Tokens that are no part of a text, but found where one spells them."""

    def get(self, index: int, first: bool) -> bytes | None:
        """The bytes of a token, `first` if it begins the text; None if it is no part of a text."""


class Spelled(Protocol):
    """A tokenizer, as far as a stream needs it."""

    @property
    def token_bytes(self) -> Spelling: ...


class TokenBytes:
    """The spelling of a vocabulary of the tokenizers library, under its own decoder."""

    def __init__(self, backend: Any):
        """backend: a tokenizers.Tokenizer."""
        self._backend = backend
        self._decode = backend.decoder.decode if backend.decoder else " ".join
        added = backend.get_added_tokens_decoder()
        self.control = frozenset(index for index, token in added.items() if token.special)
        self._literal = added.keys() - self.control
        self._is_byte_level = self._after_anchor("Ġ") == " "
        self._has_byte_tokens = self._after_anchor("<0x41>") == "A"
        self._known: dict[int, bytes] = {}

    def get(self, index: int, first: bool) -> bytes | None:
        """As `Spelling.get`; each token is asked for once."""
        token = None if index in self.control else self._backend.id_to_token(index)
        if token is None:
            return None
        if first:
            return self._spell(index, token, first=True)
        if index not in self._known:
            self._known[index] = self._spell(index, token, first=False)
        return self._known[index]

    def _spell(self, index: int, token: str, first: bool) -> bytes:
        if self._is_byte_level:
            # What is added to the vocabulary is spelled as it is, all else in GPT-2's alphabet.
            if index in self._literal or not set(token) <= BYTE_OF.keys():
                return token.encode()
            return bytes(BYTE_OF[symbol] for symbol in token)
        if self._has_byte_tokens and (named := BYTE_TOKEN.fullmatch(token)):
            byte = int(named[1], 16)
            if byte >= 0x80:  # the others are characters, and treated as such
                return bytes([byte])
        return (self._decode([token]) if first else self._after_anchor(token)).encode()

    def _after_anchor(self, token: str) -> str:
        text: str = self._decode([_ANCHOR, token])
        return text.removeprefix(_ANCHOR)


class Showing:
    """A tokenizer that spells some of its control tokens as well."""

    def __init__(self, token_bytes: Spelling, shown: Mapping[int, bytes]):
        self.token_bytes: Spelling = self
        self.control = token_bytes.control
        self._token_bytes, self._shown = token_bytes, shown

    def get(self, index: int, first: bool) -> bytes | None:
        """As `Spelling.get`."""
        return self._shown.get(index) or self._token_bytes.get(index, first)


class TextStream:
    """Text of a growing list of ids: each character as soon as its last byte is there.

    Bytes that are no UTF-8 become one U+FFFD for each longest beginning of a character among them
    (Unicode, section 3.9, "maximal subparts"), as soon as it is known that they are none. The
    pushed pieces and the finish, joined, are the decoded whole, wherever it is cut. A piece costs
    the same however long the text is.
    """

    def __init__(self, tokenizer: Spelled):
        self._token_bytes = tokenizer.token_bytes
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; may be empty."""
        return self._characters.decode(b"".join(map(self._next, ids)))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for bytes that never became a character."""
        return self._characters.decode(b"", final=True)

    def _next(self, index: int) -> bytes:
        spelled = self._token_bytes.get(index, first=not self._begun)
        self._begun = self._begun or spelled is not None
        return spelled or b""
