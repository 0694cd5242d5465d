"""What can be enforced is, and what cannot is refused by name, however hostile it is."""

import contextlib
import json
import re

import pytest

from runtime.grammar.grammars import MOST_COMPILED
from runtime.grammar.schema import is_exclusive
from tests.grammar.vocabularies import Toy

TOY = Toy([bytes([byte]) for byte in range(32, 127)] + [b"\n"])

REFUSED = [
    ("json_schema", '{"not": {}}', '"not"'),
    ("json_schema", '{"type": "array", "uniqueItems": true}', '"uniqueItems"'),
    ("json_schema", '{"contains": {}, "type": "array"}', '"contains"'),
    ("json_schema", '{"if": {}, "then": {}}', '"if", "then"'),
    ("json_schema", '{"propertyNames": {"maxLength": 3}}', '"propertyNames"'),
    ("json_schema", '{"items": {"unevaluatedProperties": false}}', '"unevaluatedProperties"'),
    ("json_schema", '{"type": "string", "format": "binary"}', '"format": "binary"'),
    ("json_schema", '{"oneOf": [{"type": "string"}, {"maxLength": 3}]}', '"oneOf"'),
    ("json_schema", '{"type": "object", "minProperties": 2}', '"minProperties"'),
    ("json_schema", '{"multipleOf": 1000003}', '"multipleOf"'),
    ("json_schema", '{"multipleOf": 0.0000001, "items": {"multipleOf": 9973}}', '"multipleOf"'),
    ("json_schema", '{"multipleOf": 1e300}', '"multipleOf"'),
    ("json_schema", '{"minimum": 1e999}', "JSON"),
    ("json_schema", '{"const": 175928847299117063}', '175928847299117063 as "const"'),
    ("json_schema", '{"enum": ["a", {"id": [9007199254740993]}]}', '9007199254740993 as "enum"'),
    ("json_schema", '{"type": "integer", "const": 1e19}', '1e+19 as "const"'),
    ("json_schema", '{"enum": [9223372036854775808]}', '9223372036854775808 as "enum"'),
    ("json_schema", '{"items": {"minimum": 9007199254740993}}', '9007199254740993 as "minimum"'),
    ("json_schema", '{"maximum": -9007199254740993}', '-9007199254740993 as "maximum"'),
    ("json_schema", '{"type": "integer", "minimum": 1e20, "maximum": 2e20}', '1e+20 as "minimum"'),
    ("json_schema", '{"type": "integer", "minimum": 1.5e308}', '1.5e+308 as "minimum"'),
    ("json_schema", '{"items": {"exclusiveMaximum": -1.5e308}}', '-1.5e+308 as "exclusiveMaximum"'),
    ("json_schema", '{"exclusiveMinimum": -1e19, "maximum": 5}', '-1e+19 as "exclusiveMinimum"'),
    ("lark", 'start: %json {"const": 175928847299117063}', '175928847299117063 as "const"'),
    ("json_schema", '{"type": "strng"}', "strng"),
    ("json_schema", '{"x-guidance": {"lenient": true}}', "x-guidance"),
    ("json_schema", '{"$ref": "https://example.com/schema"}', "example.com"),
    ("json_schema", '{"$ref": "#"}', "no answer fits"),
    ("json_schema", "false", "Unsatisfiable"),
    ("json_schema", '{"type":', "no JSON"),
    ("json_schema", '"string"', "object or boolean"),
    ("regex", "a(", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", r"(a)\1", "backreferences"),
    ("lark", 'begin: "a"', "start"),
    ("lark", 'start: "a"\nother: "b" }', "line 2"),
    ("lark", 'start: "a" %json {"not": {}}', '"not"'),
    ("lark", 'start: %json {"multipleOf": 1000003}', '"multipleOf"'),
    ("gbnf", 'root ::= "a"', "gbnf"),
]


@pytest.mark.parametrize(("kind", "text", "named"), REFUSED)
def test_a_refusal_names_what_cannot_be_enforced(kind: str, text: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as refused:
        TOY.grammars().matcher(kind, text)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 400


ENFORCED = [
    '{"type": "object"}',
    '{"type": "number", "multipleOf": 0.01, "items": {"multipleOf": 1000}}',
    '{"type": "object", "required": ["a", "b"], "minProperties": 3}',
    '{"properties": {"multipleOf": {"type": "string"}, "minProperties": {"not_a": 1}}}',
    '{"const": {"multipleOf": 1000003, "minProperties": 9, "oneOf": [{}, {}]}}',
    '{"enum": [9007199254740992, 4611686018427387904, -0.1234567890123456789, true]}',
    '{"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}',
    '{"type": "integer", "minimum": 0, "maximum": 18446744073709551615}',  # to 2**63 - 1
    '{"type": "integer", "minimum": 9223372036854775807, "maximum": 9223372036854775807}',
    '{"title": "T", "description": "d", "deprecated": true, "x-mine": 1, "nullable": true}',
    *(
        json.dumps({"type": "string", "format": name})
        for name in ("date-time", "date", "time", "duration", "email", "uuid", "ipv4", "uri")
    ),
]


@pytest.mark.parametrize("text", ENFORCED)
def test_what_can_be_enforced_is_taken(text: str) -> None:
    assert TOY.grammars().matcher("json_schema", text)


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["const"], 2**53),
        (["const"], -(2**53)),
        (["const"], 2**62),
        (["minimum", "maximum"], 2**53),
        (["minimum", "maximum"], -(2**53)),
        (["minimum", "maximum"], 2**63 - 1),
    ],
)
def test_a_large_number_that_is_taken_is_itself(names: list[str], value: int) -> None:
    text = json.dumps({"type": "integer", **dict.fromkeys(names, value)})
    own, others = [
        [TOY.texts.index(letter.encode()) for letter in str(number)]
        for number in (value, value + 1)
    ]
    TOY.grammars().matcher("json_schema", text).advance(own)
    with pytest.raises(ValueError, match="not one that its constraint allows"):
        TOY.grammars().matcher("json_schema", text).advance(others)


def one_of(*options: object, **more: object) -> dict[str, object]:
    return {"oneOf": [*options], **more}


def cat(name: str, **more: object) -> dict[str, object]:
    properties = {"kind": {"const": name}, "age": {"type": "integer"}}
    return {"type": "object", "properties": properties, "required": ["kind"], **more}


@pytest.mark.parametrize(
    ("schema", "exclusive"),
    [
        (one_of({"type": "string"}, {"type": "integer"}), True),
        (one_of({"type": "number"}, {"type": "integer"}), False),
        (one_of({"type": ["string", "null"]}, {"type": "null"}), False),
        (one_of({"enum": ["a", "b"]}, {"const": "c"}), True),
        (one_of({"enum": ["a", "b"]}, {"const": "b"}), False),
        (one_of({"enum": ["a", 1]}, {"const": 1.0}), False),
        (one_of(cat("cat"), cat("dog"), cat("owl")), True),
        (one_of(cat("cat"), cat("dog"), cat("cat")), False),
        (one_of(cat("cat"), cat("dog", required=[])), False),
        (one_of({"$ref": "#/$defs/x"}, cat("b"), **{"$defs": {"x": cat("a")}}), True),
        (one_of({"$ref": "#/$defs/x"}, cat("b"), **{"$defs": {"x": {"$ref": "#"}}}), False),
        (one_of({"$ref": "#/a"}, {"$ref": "#/a"}, a={"$ref": "#/a"}), False),
        ({"items": one_of({"type": "string"}, {})}, False),
        ({"properties": {"oneOf": {"type": "string"}}}, True),
        ({"const": one_of({}, {})}, True),
    ],
)
def test_alternatives_that_cannot_both_hold_are_seen(schema: dict, exclusive: bool) -> None:
    assert is_exclusive(schema) == exclusive


@pytest.mark.parametrize("kind", ["json_schema", "lark"])
def test_a_discriminated_union_is_enforced(kind: str) -> None:
    text = json.dumps(one_of({"$ref": "#/$defs/x"}, cat("b"), **{"$defs": {"x": cat("a")}}))
    matcher = TOY.grammars().matcher(
        kind, text if kind == "json_schema" else f"start: %json {text}"
    )
    matcher.advance([TOY.texts.index(letter.encode()) for letter in '{"kind":"b"}'])


DEPTH = 4000
HOSTILE = [
    ("lark", "start: r0\n" + "".join(f"r{i}:r{i + 1}\n" for i in range(DEPTH)) + f'r{DEPTH}: "a"'),
    ("lark", "start: R0\n" + "".join(f"R{i}:R{i + 1}\n" for i in range(DEPTH)) + f'R{DEPTH}: "a"'),
    ("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    ("lark", "start: start"),
    ("lark", "start: /" + "a?" * 30_000 + "b/"),
    ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    ("regex", "((((a{1000}){1000}){1000}){1000}){1000}"),
    ("json_schema", "[" * 60_000),
    ("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000),
    (
        "json_schema",
        json.dumps(
            {
                "$ref": "#/$defs/0",
                "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(1600)}
                | {"1600": {"type": "null"}},
            }
        ),
    ),
    ("json_schema", json.dumps({"type": "array", "minItems": 10**18, "items": {}})),
]


@pytest.mark.parametrize(("kind", "text"), HOSTILE, ids=lambda value: value[:24])
def test_a_hostile_constraint_harms_nobody(kind: str, text: str) -> None:
    """It is refused, or taken; the process lives, and other constraints are enforced."""
    grammars = TOY.grammars()
    with contextlib.suppress(ValueError):
        grammars.matcher(kind, text).masks([2, 3, 4], [0, 0, 1])
    assert grammars.matcher("regex", "a").masks([], [])[0].any()


def test_the_latest_constraints_stay_compiled() -> None:
    grammars = TOY.grammars()
    for count in range(MOST_COMPILED + 10):
        grammars.matcher("regex", f"a{{{count + 1}}}")
        grammars.matcher("regex", "b")
    assert len(grammars._compiled) == MOST_COMPILED
    assert ("regex", "b") in grammars._compiled


def test_a_tokenizer_is_loaded_with_the_first_constraint_and_once() -> None:
    loaded = []
    from runtime.grammar.grammars import Grammars
    from runtime.grammar.tokens import Tokens

    grammars = Grammars(lambda: loaded.append(1) or Tokens(TOY, len(TOY.texts)))  # type: ignore
    assert not loaded
    for _ in range(2):
        grammars.matcher("regex", "a")
    assert loaded == [1]
