"""Readers of calls, one for each form in which models write them.

A reader gets the text behind a call's opening mark, character by character. It raises ValueError
where the text is no call after all. Knows nothing of what is around a call.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from runtime.api.tools.events import Arguments, CallBegun, CallBroken, CallEnded, Content, Event
from runtime.api.tools.json_object import SPACE, JsonObject

CLOSE = "</tool_call>"
ARGUMENTS = ("arguments", "parameters")
MAX_NAME = 256
MAX_PYTHON = 1 << 16  # characters

Schema = Mapping[str, Any]


class Reader(Protocol):
    """Reads one call, or several that follow on one mark."""

    @property
    def ended(self) -> bool:
        """Whether what comes next is something else."""

    def push(self, character: str) -> None:
        """One more. Raises ValueError where no call goes on so."""

    def finish(self) -> None:
        """The answer has ended here. Raises ValueError where a call is not whole."""


class Ledger:
    """The events of an answer's calls, with the text of the one that is being read."""

    def __init__(self, functions: Mapping[str, Schema], new_id: Callable[[], str]):
        """functions: those that there are, each with the schema of its arguments."""
        self.functions, self._new_id = functions, new_id
        self.events: list[Event] = []
        self.text = ""  # of the present call
        self.ended = 0  # calls
        self._begun = 0

    @property
    def is_begun(self) -> bool:
        """Whether the present call has been told of."""
        return self._begun > self.ended

    def begin(self, name: str) -> None:
        """A call of this function. Raises ValueError for what is no name."""
        if not name or len(name) > MAX_NAME:
            raise ValueError(f"no function has the name {name!r:.40}")
        self.events.append(CallBegun(self._begun, self._new_id(), name))
        self._begun += 1

    def add(self, text: str) -> None:
        """More of its arguments."""
        self.events.append(Arguments(self._begun - 1, text))

    def end(self) -> None:
        """It is whole."""
        self.events.append(CallEnded(self.ended))
        self.ended += 1
        self.text = ""

    def whole(self, name: str, arguments: Mapping[str, Any]) -> None:
        """A call that is there all at once."""
        self.begin(name)
        self.add(json.dumps(arguments, ensure_ascii=False))
        self.end()

    def give_up(self, end: int) -> None:
        """The present text is no call; it ends there in the answer."""
        number = self._begun - 1
        is_begun, text = self.is_begun, self.text
        broken = CallBroken(number, text, end) if is_begun else Content(text, end)
        self._begun, self.text = self.ended, ""
        self.events.append(broken)


class JsonCall:
    """{"name": ..., "arguments": {...}}, or "parameters", with whatever else beside them.

    only_known: text that names no function there is, is no call.
    """

    def __init__(self, ledger: Ledger, only_known: bool = False):
        self._ledger, self._only_known = ledger, only_known
        self._object = JsonObject()
        self._name: str | None = None
        self._name_text = ""
        self._early = ""  # arguments that came before the name, or in a text of their own
        self._in_text = False

    @property
    def ended(self) -> bool:
        return self._object.ended

    def push(self, character: str) -> None:
        field = self._object.push(character)
        if field == "name":
            self._name_text += character
        elif self._name is None and self._name_text:
            self._know_name()
        if field in ARGUMENTS:
            self._argument(character)
        if self._object.ended:
            self._end()

    def _know_name(self) -> None:
        name = json.loads(self._name_text)
        if not isinstance(name, str) or (self._only_known and name not in self._ledger.functions):
            raise ValueError(f"{name!r:.40} is no function")
        self._name = name
        if self._early and not self._in_text:
            self._ledger.begin(name)
            self._ledger.add(self._early)

    def _argument(self, character: str) -> None:
        if not self._early:
            self._early, self._in_text = character, character == '"'
            if character not in '"{':
                raise ValueError("the arguments are no object")
            if self._name is not None and not self._in_text:
                self._ledger.begin(self._name)
                self._ledger.add(character)
        elif self._name is not None and not self._in_text:
            self._ledger.add(character)
        else:
            self._early += character

    def _end(self) -> None:
        if self._name is None:
            raise ValueError("a call without a name")
        if self._in_text:
            arguments = json.loads(json.loads(self._early))
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are no object")
            self._ledger.begin(self._name)
            self._ledger.add(json.loads(self._early))
        elif not self._early:
            # a name alone may be anything where calls have no marks
            if self._only_known:
                raise ValueError("a call without arguments")
            self._ledger.begin(self._name)
            self._ledger.add("{}")
        self._ledger.end()


class Tagged:
    """One JsonCall, </tool_call>."""

    def __init__(self, ledger: Ledger):
        self.ended = False
        self._call, self._close = JsonCall(ledger), ""

    def push(self, character: str) -> None:
        if not self._call.ended:
            self._call.push(character)
        elif self._close or character not in SPACE:
            self._close += character
            if not CLOSE.startswith(self._close):
                raise ValueError("the call goes on behind its end")
            self.ended = self._close == CLOSE

    def finish(self) -> None:
        if not self._call.ended:
            raise ValueError("the call has no end")


class Xml:
    """<function=NAME>, <parameter=KEY> VALUE </parameter> for each, </function>, </tool_call>.

    A value is a text where its schema says so, or where it is no JSON.
    """

    FUNCTION, PARAMETER, END_VALUE = "<function=", "<parameter=", "</parameter>"
    END_FUNCTION = "</function>"

    def __init__(self, ledger: Ledger):
        self.ended = False
        self._ledger, self._text = ledger, ""
        self._marks: tuple[str, ...] = (self.FUNCTION,)  # of which one is next
        self._mark = ""  # the one before the text, empty where the next is still to come
        self._name, self._key = "", ""
        self._keys: set[str] = set()

    def push(self, character: str) -> None:
        if not self._mark and not self._text and character in SPACE:
            return
        self._text += character
        if not self._mark:
            self._read_mark()
        elif self._mark == self.END_VALUE:
            if self._text.endswith(self.END_VALUE):
                self._value(self._text.removesuffix(self.END_VALUE))
        elif character == ">":
            self._read_name(self._text[:-1].strip())
        elif character in "<\n" or len(self._text) > MAX_NAME:
            raise ValueError(f"{self._text!r:.40} is no name")

    def _read_mark(self) -> None:
        if not any(mark.startswith(self._text) for mark in self._marks):
            raise ValueError(f"{self._text!r} where {self._marks} may be")
        if self._text in self._marks:
            mark, self._text = self._text, ""
            if mark == self.END_FUNCTION:
                self._ledger.add("}" if self._keys else "{}")
                self._ledger.end()
                self._marks = (CLOSE,)
            self._mark = mark if mark in (self.FUNCTION, self.PARAMETER) else ""
            self.ended = mark == CLOSE

    def _read_name(self, name: str) -> None:
        if self._mark == self.FUNCTION:
            self._name, self._mark = name, ""
            self._ledger.begin(name)
        else:
            self._key, self._mark = name, self.END_VALUE
        self._marks, self._text = (self.PARAMETER, self.END_FUNCTION), ""

    def _value(self, text: str) -> None:
        if self._key in self._keys:
            raise ValueError(f"{self._key!r:.40} is there twice")
        text = text.removeprefix("\n").removesuffix("\n")
        schema = self._ledger.functions.get(self._name, {}).get("properties", {})
        value = typed(text, schema.get(self._key) if isinstance(schema, Mapping) else None)
        pair = f"{json.dumps(self._key, ensure_ascii=False)}: {value}"
        self._ledger.add(f", {pair}" if self._keys else f"{{{pair}")
        self._keys.add(self._key)
        self._mark = self._text = ""

    def finish(self) -> None:
        if self._marks != (CLOSE,):
            raise ValueError("the call has no end")


def typed(text: str, schema: Any) -> str:
    """The JSON of a value that was written as a text."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind != "string":
        try:
            json.loads(text, parse_constant=_no_constant)
            return text
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Listed:
    """A JSON list of calls, or name[ARGS]{...}, or name[CALL_ID]id[ARGS]{...}."""

    NAME = re.compile(r"[\w.-]+(\s*\[\w*(\]\w*(\[\w*)?)?)?")

    def __init__(self, ledger: Ledger):
        self.ended = False
        self._ledger = ledger
        self._head = ""
        self._call: JsonCall | None = None
        self._arguments: JsonObject | None = None

    def push(self, character: str) -> None:
        if self._arguments is not None:
            self._argument(character)
        elif self._call is not None and not self._call.ended:
            self._call.push(character)
        elif self._head == "[":
            self._between(character)
        elif self._head or character not in SPACE:
            self._head += character
            if self._head != "[":
                self._name()

    def _between(self, character: str) -> None:
        if character == "]" and self._call is not None:
            self.ended = True
        elif character == "{":
            self._call = JsonCall(self._ledger)
            self._call.push(character)
        elif character not in f"{SPACE},":
            raise ValueError(f"{character!r} between calls")

    def _name(self) -> None:
        if self._head.endswith("[ARGS]"):
            self._ledger.begin(self._head.removesuffix("[ARGS]").split("[CALL_ID]")[0].strip())
            self._arguments = JsonObject()
        elif len(self._head) > MAX_NAME or not self.NAME.fullmatch(self._head):
            raise ValueError(f"{self._head!r:.40} is no name")

    def _argument(self, character: str) -> None:
        assert self._arguments is not None, "there is a name"
        self._arguments.push(character)
        self._ledger.add(character)
        if self._arguments.ended:
            self._ledger.end()
            self.ended = True

    def finish(self) -> None:
        if self._call is None or not self._call.ended:
            raise ValueError("the call has no end")


class Bare:
    """Calls without marks; several have semicolons between."""

    def __init__(self, ledger: Ledger):
        self.ended = False
        self._ledger = ledger
        self._call = JsonCall(ledger, only_known=True)

    def push(self, character: str) -> None:
        if not self._call.ended:
            self._call.push(character)
        elif character == "{":
            self._call = JsonCall(self._ledger, only_known=True)
            self._call.push(character)
        elif character not in f"{SPACE};":
            raise ValueError(f"{character!r} behind a call")

    def finish(self) -> None:
        if not self._call.ended:
            raise ValueError("the call has no end")


class Python:
    """Calls as Python writes them, to the end of the answer: f.call(a=1), or [f(a=1), g()]."""

    BEGIN = re.compile(r"\s*\[?\s*([A-Za-z_][\w.]*\s*(\(.*)?)?", re.DOTALL)

    def __init__(self, ledger: Ledger):
        self.ended = False
        self._ledger, self._text = ledger, ""

    def push(self, character: str) -> None:
        self._text += character
        if len(self._text) > MAX_PYTHON:
            raise ValueError("no call is so long")
        if len(self._text) <= MAX_NAME and not self.BEGIN.fullmatch(self._text):
            raise ValueError("no call in Python")

    def finish(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about backslashes, which are the model's
                tree = ast.parse(self._text.strip(), mode="eval").body
            nodes = tree.elts if isinstance(tree, ast.List) else [tree]
            calls = [self._call(node) for node in nodes]
            for _, arguments in calls:
                json.dumps(arguments, allow_nan=False)  # as not all that Python writes is JSON
        except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"no call in Python: {error}") from error
        for name, arguments in calls:
            self._ledger.whole(name, arguments)

    def _call(self, node: ast.expr) -> tuple[str, dict[str, Any]]:
        if not isinstance(node, ast.Call) or node.args:
            raise ValueError("no call in Python")
        name = ast.unparse(node.func).removesuffix(".call")
        if name not in self._ledger.functions:
            raise ValueError(f"{name!r:.40} is no function")
        arguments = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError("an argument without a name")
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        return name, arguments


class Either:
    """What follows on Llama's mark: calls in JSON, or in Python."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._reader: Reader | None = None

    @property
    def ended(self) -> bool:
        return self._reader is not None and self._reader.ended

    def push(self, character: str) -> None:
        if self._reader is None and character not in SPACE:
            self._reader = (Bare if character == "{" else Python)(self._ledger)
        if self._reader is not None:
            self._reader.push(character)

    def finish(self) -> None:
        if self._reader is None:
            raise ValueError("a mark without a call")
        self._reader.finish()
