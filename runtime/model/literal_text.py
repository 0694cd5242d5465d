"""What people write stays text in a conversation, even where it spells a control token.

A chat template makes one text of its own tokens and people's words, and a tokenizer finds control
tokens wherever they are spelled in it: somebody who writes "<|im_end|>" would end his turn and
begin another. So a mark goes into each such spelling before the template sees it, and where the
marks have come out the text is cut: no token reaches across a cut. All else is encoded as ever.
Knows no template and no tokenizer.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

MARKS = range(0xFDD0, 0xFDF0), range(0xE000, 0xF900)  # no characters, and private ones
# In front of a part, so that it is encoded as what goes on, not as what begins a text.
_ANCHOR = "\n"


class Spellings:
    """The control tokens that a text might spell. Those of one character cannot be cut."""

    def __init__(self, spellings: Iterable[str]):
        self._by_head: dict[str, tuple[str, ...]] = {}
        for text in sorted({text for text in spellings if len(text) > 1}):
            self._by_head[text[:2]] = (*self._by_head.get(text[:2], ()), text)

    @cached_property
    def _head(self) -> re.Pattern[str]:
        """The first character of what begins as a spelling does, be it within another."""
        return re.compile(f"(?={'|'.join(map(re.escape, self._by_head))}).", re.DOTALL)

    def marked(self, value: Any) -> tuple[Any, str]:
        """A JSON value with a mark in every spelling, and that mark, which is nowhere else in it.

        Raises ValueError for a value that is not JSON.
        """
        mark = _unused(json.dumps(value, ensure_ascii=False))
        return self._with_marks(value, mark), mark

    def _with_marks(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):

            def cut(head: re.Match[str]) -> str:
                spellings = self._by_head[value[head.start() : head.start() + 2]]
                return head[0] + mark * value.startswith(spellings, head.start())

            return self._head.sub(cut, value) if self._by_head else value
        if isinstance(value, dict):
            return {
                self._with_marks(key, mark): self._with_marks(item, mark)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._with_marks(item, mark) for item in value]
        return value


def encoded_in_parts(text: str, mark: str, encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a text whose parts between marks know nothing of one another."""
    begin, *others = text.split(mark)
    ids = encode(begin)
    if others:
        anchor = encode(_ANCHOR)
        for part in others:
            anchored = encode(_ANCHOR + part)
            stands = anchored[: len(anchor)] == anchor
            ids += anchored[len(anchor) :] if stands else encode(part)
    return ids


def _unused(text: str) -> str:
    for marks in MARKS:
        for code in marks:
            if chr(code) not in text:
                return chr(code)
    raise ValueError("the conversation has every private character of Unicode; leave one out")
