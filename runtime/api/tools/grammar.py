"""What a model may write where its calls have to be valid: a grammar in llguidance's form of Lark.

Every form is written as the chat template writes it, so that a model is held to what it was trained
on. Knows no request; what cannot be enforced is told when a grammar is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from runtime.api.tools.chat_format import Calls
from runtime.grammar.grammars import check
from runtime.grammar.schema import ready

OBJECT: Mapping[str, Any] = {"type": "object"}
ANYTHING = "/(?s:.*)/"
# rules of a grammar by name, and what a mark is in it
Rules = dict[str, str]
Spell = Callable[[str], str]


@dataclass(frozen=True)
class Function:
    """A function that may be called. strict: its arguments are sure to fit their schema."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: OBJECT)
    strict: bool = False


@dataclass(frozen=True)
class Calling:
    """Which calls an answer may have. must: it is nothing but calls; several: more than one."""

    form: Calls
    functions: Sequence[Function]
    must: bool
    several: bool


@dataclass(frozen=True)
class Thinking:
    """What begins and ends thoughts; is_begun: by the prompt."""

    begin: str
    end: str
    is_begun: bool


def lark(
    spell: Spell,
    calling: Calling | None = None,
    thinking: Thinking | None = None,
    schema: Any = None,
) -> str:
    """The grammar of an answer: thoughts, and then calls, or content under a JSON schema.

    spell: how a grammar names a mark, as a control token or as a text. schema: None where content
    is free. Raises ValueError for a schema that cannot be enforced.
    """
    rules: Rules = {}
    said = _json(schema) if schema is not None else ANYTHING
    if calling is not None:
        calls = _calls(calling, spell, rules)
        if calling.must:
            said = calls
        elif schema is None:
            said = _lazily(calling, thinking, spell, rules)
        elif calling.form is Calls.BARE:
            raise ValueError(
                "this model writes calls as it would write content in JSON; leave response_format "
                'out, or let tool_choice be "required" or "none"'
            )
        else:
            said = f"{calls} | {said}"
    rules["said"] = said
    start = f"{_thoughts(thinking, spell, rules)} said" if thinking else "said"
    written = "\n".join(f"{name}: {body}" for name, body in rules.items())
    return f"start: {start}\n{written}\n"


def enforceable(functions: Sequence[Function], most_bytes: int) -> list[Function]:
    """The functions with schemas that can be enforced, together in so many bytes.

    One that is not strict is any object instead, where it has to be. Raises ValueError for a strict
    one whose schema cannot.
    """
    kept = list[Function]()
    for function in functions:
        why = _refusal(json.dumps(function.parameters))
        if why and function.strict:
            raise ValueError(f"the parameters of {function.name}: {why}")
        kept.append(replace(function, parameters=OBJECT) if why else function)
    if sum(len(json.dumps(function.parameters)) for function in kept) > most_bytes:
        return [one if one.strict else replace(one, parameters=OBJECT) for one in kept]
    return kept


@lru_cache(maxsize=512)  # agents send the same functions with every request
def _refusal(text: str) -> str:
    """Why a schema cannot be enforced; empty if it can."""
    try:
        check("json_schema", text)
    except ValueError as error:
        return str(error)
    return ""


def _thoughts(thinking: Thinking, spell: Spell, rules: Rules) -> str:
    end = spell(thinking.end)
    if end.startswith("<"):
        rules["thoughts"] = f"{ANYTHING} {end}"
    else:
        rules["thoughts"] = "until_end /[ \\n]*/"
        rules["until_end[lazy]"] = f"/(?s:.*){_literal(thinking.end)}/"
    return "thoughts" if thinking.is_begun else f"({spell(thinking.begin)} thoughts)?"


def _calls(calling: Calling, spell: Spell, rules: Rules) -> str:
    """One call after the other, in the form of the model."""
    for number, function in enumerate(calling.functions):
        _function(calling.form, f"call_{number}", function, spell, rules)
    one = " | ".join(f"call_{number}" for number in range(len(calling.functions)))
    match calling.form:
        case Calls.BARE:
            return f"({one})"
        case Calls.LISTED:
            more = f'(", " ({one}))*' if calling.several else ""
            return f'{spell("[TOOL_CALLS]")} "[" ({one}) {more} "]"'
        case Calls.NAMED:
            mark = spell("[TOOL_CALLS]")
            return f"({mark} ({one}))+" if calling.several else f"{mark} ({one})"
        case _:
            tagged = f"{spell('<tool_call>')} ({one}) {spell('</tool_call>')}"
            return f'{tagged} ("\\n" {tagged})*' if calling.several else tagged


def _function(form: Calls, rule: str, function: Function, spell: Spell, rules: Rules) -> None:
    name, arguments = function.name, f"{rule}_arguments"
    key = "parameters" if form is Calls.BARE else "arguments"
    begin = json.dumps(f'{{"name": {json.dumps(name)}, "{key}": ')
    match form:
        case Calls.XML:
            begin = json.dumps(f"\n<function={name}>\n")
            rules[rule] = f'{begin} {arguments} "</function>\\n"'
            rules[arguments] = _parameters(arguments, function.parameters, rules)
            return
        case Calls.NAMED:
            rules[rule] = f"{json.dumps(name)} {spell('[ARGS]')} {arguments}"
        case Calls.JSON:
            rules[rule] = f'"\\n" {begin} {arguments} "}}\\n"'
        case _:
            rules[rule] = f'{begin} {arguments} "}}"'
    rules[arguments] = _json({**OBJECT, **function.parameters})


def _parameters(rule: str, schema: Mapping[str, Any], rules: Rules) -> str:
    """The parameters of a call in XML, in the order of the schema."""
    named = schema.get("properties")
    if not isinstance(named, Mapping) or not named:
        rules[f"{rule}_any[lazy]"] = r"/<parameter=[^<>\n]+>\n(?s:.*)\n<\/parameter>\n/"
        return f"{rule}_any*" if named is None else '""'
    parts = list[str]()
    for number, (key, value) in enumerate(named.items()):
        part = f"{rule}_{number}"
        rules[part] = f"{json.dumps(f'<parameter={key}>' + chr(10))} {part}_value"
        value = value if isinstance(value, Mapping) else {}
        if value.get("type") == "string" and "enum" not in value and "const" not in value:
            rules[f"{part}_value[lazy]"] = r"/(?s:.*)\n<\/parameter>\n/"
        else:
            rules[f"{part}_value"] = f'{_value(value, schema)} "\\n</parameter>\\n"'
        parts.append(part if key in schema.get("required", ()) else f"{part}?")
    return " ".join(parts)


def _value(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What is no free text: JSON, or one of some texts."""
    texts = value.get("enum", [value["const"]] if "const" in value else [])
    if texts and all(isinstance(text, str) for text in texts):
        return f"({' | '.join(map(json.dumps, texts))})"
    defined = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return _json({**value, **defined})


def _lazily(calling: Calling, thinking: Thinking | None, spell: Spell, rules: Rules) -> str:
    """Any text, in which a call that has been opened is a valid one."""
    # what begins thoughts is no such text: a call within them is none
    but = f" & ~/{_literal(thinking.begin)}(?s:.*)/" if thinking and not thinking.is_begun else ""
    if calling.form is Calls.BARE:
        rules["TEXT"] = f"/[^{{](?s:.*)/{but}"
        return f'{_calls(calling, spell, rules)} | TEXT | ""'
    is_listed = calling.form in (Calls.LISTED, Calls.NAMED)
    mark = "[TOOL_CALLS]" if is_listed else "<tool_call>"
    # a list has several calls behind one mark, in the other forms each has its own
    one = calling if calling.form is Calls.LISTED else replace(calling, several=False)
    rest = _calls(one, spell, rules).removeprefix(spell(mark))
    rules["TEXT"] = f"{ANYTHING}{but}"
    if spell(mark).startswith("<"):
        rules["opened"] = f"TEXT {spell(mark)}"
    else:
        rules["TO_CALL"] = f"/(?s:.*){_literal(mark)}/{but}"
        rules["opened[lazy]"] = "TO_CALL"
    return f"(opened {rest})* TEXT" if calling.several else f"opened {rest} | TEXT"


def _json(schema: Any) -> str:
    return f"%json {json.dumps(ready(schema))}"


def _literal(text: str) -> str:
    """A text within a regular expression between slashes."""
    return re.sub(r"([^\w\n<>])", r"\\\1", text)
