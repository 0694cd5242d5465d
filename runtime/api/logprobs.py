"""Log-probabilities of an answer's tokens, as either endpoint spells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.model.text_stream import Spelled, TextStream

if TYPE_CHECKING:
    from runtime.edge.answer import TokenLogprob
    from runtime.model.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no infinity; vLLM says it so too


def of_chat(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """{"content": [...]}, a token each with its bytes, which may be a part of a character."""
    return {"content": [_entry(tokenizer, entry) for entry in entries], "refusal": None}


class MessageLogprobs:
    """Those of the tokens that messages are made of, in an answer that may be more than messages.

    A token of two messages, or of one and of something else, is the first one's.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Spelled) -> None:
        """shown: the tokenizer, where the text has some of its control tokens."""
        self._tokenizer, self._stream = tokenizer, TextStream(shown)
        self._length = 0  # of the text of the tokens that were read
        self._waiting: list[tuple[int, int, TokenLogprob]] = []  # where each begins and ends

    def read(self, entries: Sequence[TokenLogprob]) -> None:
        """The answer's next tokens."""
        for entry in entries:
            begin = self._length
            self._length += len(self._stream.push([entry.token]))
            self._waiting.append((begin, self._length, entry))

    def of(self, begin: int, end: int) -> list[dict[str, Any]]:
        """Of a message's characters from `begin` up to `end` of the answer, behind all before."""
        # the first bytes of a character are tokens without a text, and have to do with what follows
        told = [
            entry
            for first, last, entry in self._waiting
            if first < end and (last > begin or first == last >= begin)
        ]
        self._waiting = [one for one in self._waiting if one[0] >= end]
        return [_entry(self._tokenizer, entry) for entry in told]


class CompletionLogprobs:
    """Those of one answer, lists beside each other; knows how much text has been before."""

    def __init__(self, tokenizer: Tokenizer, shown: Spelled | None = None) -> None:
        """shown: the tokenizer, where the text has some of its control tokens."""
        self._tokenizer, self._shown = tokenizer, shown or tokenizer
        self._stream, self._length = TextStream(self._shown), 0

    def first(self, token: int) -> dict[str, Any]:
        """Of a prompt's first token, before which nothing is."""
        text, offset = _text(self._tokenizer, token), self._offset(token)
        nothing: list[None] = [None]
        return {
            "tokens": [text],
            "token_logprobs": nothing,
            "top_logprobs": nothing,
            "text_offset": [offset],
        }

    def next(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Of the tokens that follow."""
        return {
            "tokens": [_text(self._tokenizer, entry.token) for entry in entries],
            "token_logprobs": [max(entry.logprob, LEAST) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [self._offset(entry.token) for entry in entries],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest and, as at OpenAI, the token itself; of texts that are equal the likeliest.

        Parts of characters may be: all are U+FFFD.
        """
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(_text(self._tokenizer, token), max(logprob, LEAST))
        return top

    def _offset(self, token: int) -> int:
        """Where the text of the next token begins; of a part of a character, where that does."""
        before = self._length
        self._length += len(self._stream.push([token]))
        try:
            return self._length - len(_bytes(self._shown, token).decode())
        except UnicodeDecodeError:
            return before


def _entry(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(tokenizer, entry.token, entry.logprob),
        "top_logprobs": [_token(tokenizer, *likely) for likely in entry.top],
    }


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelled = list(_bytes(tokenizer, token))
    return {"token": _text(tokenizer, token), "logprob": max(logprob, LEAST), "bytes": spelled}


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A control token, which is no text, as the vocabulary has it."""
    return _bytes(tokenizer, token).decode(errors="replace") or tokenizer.token(token)


def _bytes(tokenizer: Spelled, token: int) -> bytes:
    return tokenizer.token_bytes.get(token, first=False) or b""
