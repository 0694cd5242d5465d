"""Answers are told apart into thoughts, content and calls, wherever their text is cut."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.api.tools.chat_format import Calls
from runtime.api.tools.events import (
    Arguments,
    CallBegun,
    CallBroken,
    CallEnded,
    Content,
    Thought,
    new_id,
)
from runtime.api.tools.parser import MARKS, Parser

THINK = ("<think>", "</think>")
FUNCTIONS = {"f": {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}, "g": {}}
PIECES = [
    *(mark for marks in MARKS.values() for mark in marks),
    *("</tool_call>", "<think>", "</think>", "<function=f>", "<parameter=a>", "</parameter>"),
    *("</function>", "[ARGS]", "[CALL_ID]", "f", "g", '{"name": "f", "arguments": {"a": "b"}}'),
    *('{"name": "g", "parameters": {}}', '{"a": 1}', "[", "]", "{", "}", '"', ", ", "\n", " ", ";"),
    *("f(a=1)", ".call(", ")", "<", "tool_call", "é", "word"),
]


def parser(calls, thoughts=THINK, is_thinking=False):
    ids = itertools.count()
    return Parser(calls, FUNCTIONS, thoughts, is_thinking, lambda: f"id{next(ids)}")


def joined(events):
    """The same, but that neighbours of one kind are one."""
    told = []
    for event in events:
        last = told[-1] if told else None
        if type(last) is type(event) and isinstance(event, Content | Thought):
            told[-1] = type(event)(last.text + event.text)
        elif isinstance(last, Arguments) and isinstance(event, Arguments):
            assert last.index == event.index
            told[-1] = Arguments(event.index, last.text + event.text)
        else:
            told.append(event)
    return told


def read(text, calls, cuts=(), cut_off=False, **options):
    one = parser(calls, **options)
    places = [0, *sorted(cuts), len(text)]
    events = [event for a, b in itertools.pairwise(places) for event in one.push(text[a:b])]
    return joined([*events, *one.finish(cut_off)]), one.has_called


def call(index, name, arguments):
    return [CallBegun(index, f"id{index}", name), Arguments(index, arguments), CallEnded(index)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), pieces=st.lists(st.sampled_from(PIECES), max_size=12))
@pytest.mark.parametrize("calls", [None, *Calls])
def test_it_does_not_matter_where_a_text_is_cut(calls, data, pieces):
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    cut_off, is_thinking = data.draw(st.booleans()), data.draw(st.booleans())
    options = {"cut_off": cut_off, "is_thinking": is_thinking}
    whole = read(text, calls, **options)
    assert read(text, calls, cuts, **options) == whole
    assert read(text, calls, range(len(text)), **options) == whole


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), cut_off=st.booleans())
@pytest.mark.parametrize("calls", [None, *Calls])
def test_what_is_told_is_in_order(calls, pieces, cut_off):
    """Calls begin, go on and end one after the other; those that ended have arguments in JSON."""
    text = "".join(pieces)
    events, has_called = read(text, calls, cut_off=cut_off)
    begun, ended, arguments = [], [], {}
    for event in events:
        match event:
            case CallBegun():
                assert event.index == len(ended)
                begun.append(event.index)
                arguments[event.index] = ""
            case Arguments():
                assert event.index == begun[-1] == len(ended)
                arguments[event.index] += event.text
            case CallEnded():
                assert event.index == begun[-1] == len(ended)
                assert isinstance(json.loads(arguments[event.index]), dict)
                ended.append(event.index)
            case CallBroken():
                assert event.index == begun.pop() == len(ended)
    assert has_called == (bool(ended) and len(ended) == len(begun))
    # nothing is made up
    for event in events:
        if isinstance(event, Content | Thought):
            assert event.text.strip() in text or calls is not None


@settings(max_examples=100, deadline=None)
@given(data=st.data(), pieces=st.lists(st.sampled_from(PIECES), max_size=12))
@pytest.mark.parametrize("calls", [None, *Calls])
def test_content_says_where_it_was(calls, data, pieces):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    one, before = parser(calls), 0
    parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    events = [event for part in parts for event in one.push(part)]
    for event in [*events, *one.finish(cut_off=data.draw(st.booleans()))]:
        if isinstance(event, Content | CallBroken):
            begin = event.end - len(event.text)
            assert text[begin : event.end] == event.text
            assert begin >= before
            before = event.end


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4))
@pytest.mark.parametrize("calls", [None, *Calls])
def test_text_without_marks_is_content_as_it_is(calls, text, cuts):
    if not any(character in text for character in "<[{"):
        cuts = [cut for cut in cuts if cut <= len(text)]
        assert read(text, calls, cuts)[0] == [Content(text)] * bool(text)


SPOKEN = [Content("One moment.")]
XML = "<tool_call>\n<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("calls", "text", "expected"),
    [
        (
            Calls.JSON,
            '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n'
            '<tool_call>{"arguments": {"n": [1]}, "name": "g", "id": 7}</tool_call>\n',
            [*call(0, "f", '{"a": "</tool_call>"}'), *call(1, "g", '{"n": [1]}')],
        ),
        (Calls.JSON, '<tool_call>{"name": "h"}</tool_call>', call(0, "h", "{}")),
        (
            Calls.JSON,
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            call(0, "f", '{"a": 1}'),
        ),
        (Calls.XML, XML.format("12"), call(0, "f", '{"a": "12"}')),
        (Calls.XML, XML.format("<b>\n\n"), call(0, "f", '{"a": "<b>\\n\\n"}')),
        (Calls.XML, XML.replace("=a", "=n").format("12"), call(0, "f", '{"n": 12}')),
        (Calls.XML, XML.replace("=a", "=n").format("NaN"), call(0, "f", '{"n": "NaN"}')),
        (
            Calls.XML,
            "<tool_call>\n<function=g>\n</function>\n</tool_call>\n" + XML.format("é"),
            [*call(0, "g", "{}"), *call(1, "f", '{"a": "é"}')],
        ),
        (Calls.BARE, '\n{"name": "f", "parameters": {"a": "b"}}', call(0, "f", '{"a": "b"}')),
        (
            Calls.BARE,
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
            [*call(0, "f", "{}"), *call(1, "g", "{}")],
        ),
        (Calls.BARE, '<|python_tag|>f.call(a="b", n=-1)', call(0, "f", '{"a": "b", "n": -1}')),
        (
            Calls.BARE,
            "[f(a='b'), g(x=[True, None])]",
            [*call(0, "f", '{"a": "b"}'), *call(1, "g", '{"x": [true, null]}')],
        ),
        (
            Calls.LISTED,
            '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "123456789"}, '
            '{"name": "g", "arguments": {"a": []}}]',
            [*call(0, "f", "{}"), *call(1, "g", '{"a": []}')],
        ),
        (
            Calls.NAMED,
            '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}',
            [*call(0, "f", '{"a": 1}'), *call(1, "g", "{}")],
        ),
    ],
)
def test_calls_of_every_form(calls, text, expected):
    assert read(text, calls) == (expected, True)
    if calls is not Calls.BARE:
        spoken = f"One moment.\n\n{text}"
        assert read(spoken, calls) == ([*SPOKEN, *expected], True)
    assert read(text, None) == ([Content(text)], False)


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (Calls.JSON, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        (Calls.JSON, '<tool_call>{"name": "f", "arguments": []}</tool_call>'),
        (Calls.JSON, '<tool_call>{"arguments": {}}</tool_call>'),
        (Calls.JSON, '<tool_call>{"name": "f", "arguments": "[]"}</tool_call>'),
        (Calls.JSON, "<tool_call>f(a=1)</tool_call>"),
        (Calls.JSON, "a <tool_call> b"),
        (Calls.JSON, '<tool_call>{"name": "f"'),
        (Calls.XML, "<tool_call><function=\nf></function></tool_call>"),
        (Calls.XML, '<tool_call>{"name": "f"}'),
        (Calls.BARE, '{"name": "unknown", "parameters": {}}'),
        (Calls.BARE, '{"name": "f", "age": 7}'),
        (Calls.BARE, ' {"a": [1, 2]} and more'),
        (Calls.BARE, "[a link](f) and more"),
        (Calls.BARE, "[f(a=1), h()]"),
        (Calls.BARE, "[f(a=g)]"),
        (Calls.BARE, "[f(**{})]"),
        (Calls.BARE, "[f(a={1})]"),
        (Calls.BARE, "[f(1)]"),
        (Calls.BARE, 'Say {"name": "f", "parameters": {}}'),
        (Calls.LISTED, "[TOOL_CALLS] none"),
        (Calls.LISTED, "[TOOL_CALLS][1]"),
        (Calls.NAMED, "[TOOL_CALLS]f{}"),
    ],
)
def test_what_is_no_call_is_content(calls, text):
    assert read(text, calls) == ([Content(text)], False)


def test_a_call_that_breaks_off_late_is_content_as_well():
    text = '<tool_call>{"name": "f", "arguments": {"a": oops}}</tool_call>'
    events, has_called = read(f"Hm. {text}", Calls.JSON)
    begun, piece = CallBegun(0, "id0", "f"), Arguments(0, '{"a": oops')
    broken = CallBroken(0, ' <tool_call>{"name": "f", "arguments": {"a": oops')
    assert events == [Content("Hm."), begun, piece, broken, Content("}}</tool_call>")]
    assert not has_called
    # the next is another try
    events, has_called = read(text + '<tool_call>{"name": "g"}</tool_call>', Calls.JSON)
    assert events[-3:] == [CallBegun(0, "id1", "g"), Arguments(0, "{}"), CallEnded(0)]
    assert has_called


def test_an_answer_that_was_cut_off_has_the_beginning_of_a_call():
    text = '<tool_call>{"name": "f", "arguments": {"a": "b'
    begun = [CallBegun(0, "id0", "f"), Arguments(0, '{"a": "b')]
    assert read(text, Calls.JSON, cut_off=True) == (begun, False)
    assert read(text, Calls.JSON) == ([*begun, CallBroken(0, text)], False)
    text = '<tool_call>{"name": "f", "arguments": {}}'
    assert read(text, Calls.JSON, cut_off=True) == (call(0, "f", "{}"), True)
    assert read("a <tool", Calls.JSON, cut_off=True) == ([Content("a <tool")], False)


def test_thoughts_come_before_the_rest():
    text = "<think>\nHm < <think>.\n</think>\n\nYes </think>.\n"
    told = [Thought("Hm < <think>."), Content("Yes </think>.\n")]
    assert read(text, None)[0] == read(f"\n{text}", Calls.JSON)[0] == told
    assert read(text[8:], None, is_thinking=True)[0] == told
    assert read(text, None, thoughts=None)[0] == [Content(text)]
    assert read("Yes. " + text, None)[0] == [Content("Yes. " + text)]
    assert read("<think>\n\n</think>\n\nYes.", None)[0] == [Content("Yes.")]
    assert read("<think>\nHm", None)[0] == [Thought("Hm")]
    assert read("<think></think> \n", None)[0] == []


def test_a_thinking_model_calls_as_well():
    one = '<think>f?</think>\n{"name": "f", "parameters": {}}'
    assert read(one, Calls.BARE)[0] == [Thought("f?"), *call(0, "f", "{}")]
    one = '<think><tool_call>{"name": "g"}</think><tool_call>{"name": "f"}</tool_call>'
    thought = Thought('<tool_call>{"name": "g"}')
    assert read(one, Calls.JSON)[0] == [thought, *call(0, "f", "{}")]


def test_ids_are_such_as_every_template_takes():
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 9 and one.isalnum() for one in ids)
