"""What a model has written, told apart as it comes: thoughts, content and calls.

Text may be cut anywhere. What may still become a mark, and space in front of it, is held back;
space between thoughts, content and calls belongs to none of them. A call that turns out not to be
one is content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.api.tools.calls import (
    Bare,
    Either,
    Ledger,
    Listed,
    Python,
    Reader,
    Schema,
    Tagged,
    Xml,
)
from runtime.api.tools.chat_format import Calls
from runtime.api.tools.events import Arguments, Content, Event, Thought, new_id
from runtime.api.tools.json_object import SPACE

# form -> what opens a call, and who reads on
MARKS: dict[Calls, dict[str, Callable[[Ledger], Reader]]] = {
    Calls.JSON: {"<tool_call>": Tagged},
    Calls.XML: {"<tool_call>": Xml},
    Calls.BARE: {"<|python_tag|>": Either},
    Calls.LISTED: {"[TOOL_CALLS]": Listed},
    Calls.NAMED: {"[TOOL_CALLS]": Listed},
}
# what opens one at the beginning of an answer alone, and is part of it
BARE_MARKS: dict[str, Callable[[Ledger], Reader]] = {"{": Bare, "[": Python}


class Parser:
    """Reads one answer."""

    def __init__(
        self,
        calls: Calls | None = None,
        functions: Mapping[str, Schema] | None = None,
        thoughts: tuple[str, str] | None = None,
        is_thinking: bool = False,
        new_id: Callable[[], str] = new_id,
    ):
        """calls: their form, None where they are text; functions: what there is to call.

        thoughts: what begins and ends them; is_thinking: the prompt has begun them.
        """
        self._ledger = Ledger(functions or {}, new_id)
        self._calls, self._thoughts = calls, thoughts
        self._is_thinking = is_thinking
        self._reader: Reader | None = None
        self._held = ""
        self._length = 0  # of the text so far, in characters, what is held included
        self._at_begin = True  # of what is not thoughts
        self._drops_space = is_thinking  # before the next text
        self._thought = is_thinking  # there have been thoughts

    @property
    def has_called(self) -> bool:
        """Whether all calls that were begun are whole, and there is one."""
        return self._ledger.ended > 0 and not self._ledger.is_begun

    def push(self, text: str) -> list[Event]:
        """What more text means."""
        if self._reader is None and not self._held and not self._marks():
            self._length += len(text)
            self._say(text, self._length)  # as all of it is content
            return self._told()
        for character in text:
            self._length += 1
            if self._reader is not None:
                self._read(self._reader, character)
            else:
                self._held += character
                self._release()
        return self._told()

    def finish(self, cut_off: bool = False) -> list[Event]:
        """What is left at the end of the answer; cut_off: where it was made to end."""
        if self._reader is not None:
            self._end_call(self._reader, cut_off)
        else:
            self._say(self._held, self._length)
        self._held = ""
        return self._told()

    def _read(self, reader: Reader, character: str) -> None:
        self._ledger.text += character
        try:
            reader.push(character)
        except ValueError:
            self._ledger.text = self._ledger.text[:-1]
            self._ledger.give_up(self._length - 1)
            self._reader, self._at_begin, self._drops_space = None, False, False
            self._held = character  # which may begin something else
            self._release()
        else:
            if reader.ended:
                self._reader, self._drops_space = None, True

    def _end_call(self, reader: Reader, cut_off: bool) -> None:
        if cut_off and self._ledger.is_begun:
            return
        try:
            reader.finish()
        except ValueError:
            self._ledger.give_up(self._length)

    def _release(self) -> None:
        """Give on what cannot be a mark any more, or go where a mark leads."""
        while self._held:
            rest = self._held.lstrip(SPACE)
            if not rest:
                return
            marks = self._marks()
            if rest in marks:
                return self._enter(rest)
            if any(mark.startswith(rest) for mark in marks):
                return
            said, self._held = self._held[0], self._held[1:]
            self._say(said, self._length - len(self._held))

    def _marks(self) -> list[str]:
        if self._is_thinking:
            assert self._thoughts is not None, "a model that thinks"
            return [self._thoughts[1]]
        marks = list(MARKS[self._calls]) if self._calls else []
        if self._at_begin:
            marks += BARE_MARKS if self._calls is Calls.BARE else ()
            marks += [self._thoughts[0]] if self._thoughts and not self._thought else []
        return marks

    def _enter(self, mark: str) -> None:
        held, self._held = self._held, ""
        if self._thoughts and mark in self._thoughts:
            self._is_thinking = not self._is_thinking
            self._thought = self._drops_space = True
            return
        assert self._calls is not None, "no other mark"
        begin = BARE_MARKS.get(mark)
        self._reader = (begin or MARKS[self._calls][mark])(self._ledger)
        self._ledger.text = held.removesuffix(mark) if begin else held
        if begin:
            self._read(self._reader, mark)

    def _say(self, text: str, end: int) -> None:
        """Text that is no mark, and where in the answer it ends."""
        if self._drops_space:
            text = text.lstrip(SPACE)
        if text:
            self._drops_space = False
            self._at_begin = self._at_begin and (self._is_thinking or text.isspace())
            said = Thought(text) if self._is_thinking else Content(text, end)
            self._ledger.events.append(said)

    def _told(self) -> list[Event]:
        """The events so far, pieces of the same joined."""
        told = list[Event]()
        for event in self._ledger.events:
            if told and (joined := _joined(told[-1], event)) is not None:
                told[-1] = joined
            else:
                told.append(event)
        self._ledger.events.clear()
        return told


def _joined(one: Event, more: Event) -> Event | None:
    match one, more:
        case Content(), Content():
            return Content(one.text + more.text, more.end)
        case Thought(), Thought():
            return Thought(one.text + more.text)
        case Arguments(), Arguments() if one.index == more.index:
            return Arguments(one.index, one.text + more.text)
    return None
