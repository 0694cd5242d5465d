"""What a grammar lets through is what its model would write, and what the parser reads as calls."""

import json
import random

import numpy as np
import pytest

from runtime.api.tools.chat_format import Calls
from runtime.api.tools.events import Arguments, CallBegun, CallEnded, Content
from runtime.api.tools.grammar import OBJECT, Calling, Function, Thinking, enforceable, lark
from runtime.api.tools.parser import Parser
from runtime.grammar.grammars import Grammars
from runtime.grammar.tokens import Tokens
from runtime.model.tokenizer import Tokenizer
from tests.chat_templates import CONTROL
from tests.conftest import byte_tokenizer

THEIRS = byte_tokenizer(CONTROL)
OURS = Tokenizer(THEIRS, [THEIRS.convert_tokens_to_ids("</s>")])
(STOP,) = OURS.stop_ids
GRAMMARS = Grammars(lambda: Tokens(OURS, OURS.vocabulary_size))
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTIONS = [Function("weather", SCHEMA, True), Function("time", OBJECT)]
THINK = ("<think>", "</think>")

CALL = {
    Calls.JSON: '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>',
    Calls.XML: "<tool_call>\n<function=weather>\n<parameter=city>\nRom\n</parameter>\n"
    "<parameter=unit>\nC\n</parameter>\n</function>\n</tool_call>",
    Calls.BARE: '{"name": "weather", "parameters": {"city": "Rom"}}',
    Calls.LISTED: '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rom"}}]',
    Calls.NAMED: '[TOOL_CALLS]weather[ARGS]{"city": "Rom"}',
}
SECOND = {
    Calls.JSON: "\n" + CALL[Calls.JSON],
    Calls.XML: "\n" + CALL[Calls.XML],
    Calls.NAMED: CALL[Calls.NAMED],
}


def spell(mark):
    ids = OURS.control_ids([mark])
    return f"<[{min(ids)}]>" if ids else json.dumps(mark)


def grammar(form, *, must=True, several=True, thinking=None, schema=None, functions=FUNCTIONS):
    return lark(spell, Calling(form, functions, must, several), thinking, schema)


def allowed(matcher):
    """The tokens that may follow."""
    mask = matcher.masks([], [])[0]
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def fits(text, whole):
    """Whether a whole text is one of a grammar."""
    matcher = GRAMMARS.matcher("lark", whole)
    try:
        matcher.advance(OURS._ids(text, add_special_tokens=False))
    except ValueError:
        return False
    return STOP in allowed(matcher)


@pytest.mark.parametrize("form", Calls)
def test_one_call_or_more(form):
    call, other = CALL[form], CALL[form].replace("weather", "other")
    for several in (True, False):
        held = grammar(form, several=several)
        assert fits(call, held)
        for text in ("", "Hi.", f"Hi. {call}", call[:-1], other, call.replace('"Rom"', "7")):
            assert not fits(text, held) or text == call, text
        if form in SECOND:
            assert fits(call + SECOND[form], held) == several
    only = grammar(form, functions=FUNCTIONS[1:])
    assert not fits(call, only)
    if form is not Calls.XML:
        assert not fits(call.replace('"city"', '"town"'), grammar(form))


def test_lists_have_several_calls():
    two = CALL[Calls.LISTED][:-1] + ', {"name": "time", "arguments": {}}]'
    for must in (True, False):
        assert fits(two, grammar(Calls.LISTED, must=must))
        assert not fits(two, grammar(Calls.LISTED, must=must, several=False))


@pytest.mark.parametrize("form", Calls)
def test_calls_among_text_are_valid_as_well(form):
    call, held = CALL[form], grammar(form, must=False)
    assert fits("Hi there.", held)
    assert fits("", held)
    assert fits(call, held)
    assert not fits(call.replace("weather", "other"), held)
    if form is not Calls.BARE:
        assert fits(f"Hi. {call}", held)
        assert fits(f"Hi. {call} Bye.", held)
        assert not fits(f"Hi. {call.replace('weather', 'other')}", held)
    once = grammar(form, must=False, several=False)
    assert fits(call, once)
    assert fits("Hi there.", once)
    if form in SECOND:
        assert fits(call + SECOND[form], held)
        assert not fits(call + SECOND[form], once)


@pytest.mark.parametrize("form", Calls)
def test_thoughts_come_first(form):
    for must in (True, False):
        held = grammar(form, must=must, thinking=Thinking(*THINK, is_begun=False))
        assert fits(f"<think>\nHm. <tool_call> [x]\n</think>\n\n{CALL[form]}", held)
        assert fits(CALL[form], held)
        begun = grammar(form, must=must, thinking=Thinking(*THINK, is_begun=True))
        assert fits(f"Hm.\n</think>\n\n{CALL[form]}", begun)
        assert not fits(CALL[form], begun)
    free = grammar(form, must=False, thinking=Thinking(*THINK, is_begun=False))
    assert fits("<think>\nHm.</think>\nHi.", free)
    assert fits("<b>", free)
    assert not fits("<think>\nHm.", free)
    schema = lark(spell, None, Thinking(*THINK, is_begun=True), SCHEMA)
    assert fits('Hm.</think>{"city": "Rom"}', schema)
    assert not fits("Hm.</think>Rom", schema)
    # thoughts that control tokens end
    marked = lark(spell, None, Thinking("[INST]", "[/INST]", is_begun=False), SCHEMA)
    assert fits('[INST]Hm.[/INST]{"city": "Rom"}', marked)


@pytest.mark.parametrize("form", Calls)
def test_calls_or_content_of_a_schema(form):
    wanted = {"must": False, "schema": {"type": "object", "required": ["x"]}}
    if form is Calls.BARE:  # both are JSON
        with pytest.raises(ValueError, match="leave response_format out"):
            grammar(form, **wanted)
        return
    held = grammar(form, **wanted)
    assert fits(CALL[form], held)
    assert fits('{"x": 1}', held)
    assert not fits("Hi.", held)


def written(matcher, random):
    """A random text that the grammar allows, with a liking for its end; None if it is too long."""
    ids: list[int] = []
    closing = {THEIRS.get_vocab()[letter] for letter in '"}]>/<p'}
    for _ in range(600):
        following = allowed(matcher)
        assert following, "it can always go on"
        others = [index for index in following if index != STOP]
        if STOP in following and (not others or random.random() < 0.5):
            return THEIRS.decode(ids, clean_up_tokenization_spaces=False)
        liked = [index for index in others if index in closing]
        ids.append(random.choice(liked if liked and random.random() < 0.6 else others))
        matcher.advance(ids[-1:])
    return None


@pytest.mark.parametrize("form", Calls)
def test_what_is_written_at_random_is_read_as_calls(form):
    schemas = {function.name: function.parameters for function in FUNCTIONS}
    read = 0
    for seed in range(40):
        text = written(GRAMMARS.matcher("lark", grammar(form)), random.Random(seed))
        if text is None or "\ufffd" in text:
            continue
        read += 1
        parser = Parser(form, schemas)
        events = [*parser.push(text), *parser.finish()]
        assert parser.has_called, text
        assert not any(isinstance(event, Content) for event in events), text
        arguments, name = "", ""
        for event in events:
            match event:
                case CallBegun():
                    arguments, name = "", event.name
                case Arguments():
                    arguments += event.text
                case CallEnded():
                    called = json.loads(arguments)
                    if name == "weather":
                        assert isinstance(called["city"], str)
                        assert called.keys() <= SCHEMA["properties"].keys()
                        assert called.get("unit", "C") in ("C", "F")
                        assert type(called.get("days", 0)) is int
    assert read > 2


def test_what_cannot_be_enforced_is_any_object_unless_it_is_strict():
    odd = {"type": "object", "properties": {"x": {"not": {"type": "string"}}}}
    loose, strict = Function("f", odd), Function("f", odd, strict=True)
    assert enforceable([loose, FUNCTIONS[0]], 10000) == [Function("f", OBJECT), FUNCTIONS[0]]
    with pytest.raises(ValueError, match=r"the parameters of f: .*\"not\""):
        enforceable([strict], 10000)
    # what has no room either
    assert enforceable([Function("g", SCHEMA), FUNCTIONS[0]], 100) == [
        Function("g", OBJECT),
        FUNCTIONS[0],
    ]
