"""Masks against every text there is: of languages and vocabularies small enough to list them all.

The oracles are Python's `re.fullmatch`, `json.loads` and the jsonschema package.
"""

import itertools
import json
import random
import re

import jsonschema
import numpy as np
import pytest

from runtime.grammar.matcher import Matcher, is_allowed
from tests.grammar.vocabularies import Toy

LETTERS = Toy(["a", "b", "c", "ab", "bc", "abc", "a", "", "aa", "cab"])
# finite languages, whose every text is a few letters long
EXPRESSIONS = [
    "abc",
    "a|b|ab|cab",
    "(ab){1,3}c?",
    "[abc]{2,4}",
    "a?b?c?a?",
    "(a|bc)(a|bc)?(aa)?",
    "(|a|ab)c{0,3}",
    "[^a]{1,3}a",
]
LONGEST = 7


def bits(mask: np.ndarray, size: int) -> set[int]:
    """The tokens that a mask allows."""
    return {token for token in range(size) if is_allowed(mask, token)}


def expected(toy: Toy, language: set[bytes], text: bytes) -> set[int]:
    """What may follow a text, by looking at every text of the language."""
    allowed = {
        token
        for token in toy.ids
        if toy.texts[token]
        and any(whole.startswith(text + (toy.texts[token] or b"")) for whole in language)
    }
    return allowed | (toy.stop_ids if text in language else set())


def language_of(expression: str) -> set[bytes]:
    words = (
        "".join(word) for n in range(LONGEST + 1) for word in itertools.product("abc", repeat=n)
    )
    return {word.encode() for word in words if re.fullmatch(expression, word)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_masks_allow_what_some_text_goes_on_with(expression: str) -> None:
    """All ways to every text, from the empty one on."""
    toy, language = LETTERS, language_of(expression)
    grammars, size = toy.grammars(), len(toy.texts)
    met, waiting = set[bytes](), [list[int]()]
    while waiting:
        way = waiting.pop()
        matcher = grammars.matcher("regex", expression)
        matcher.advance(way)
        text = b"".join(toy.texts[token] or b"" for token in way)
        allowed = bits(matcher.masks([], [])[0], size)
        assert allowed == expected(toy, language, text), text
        if 0 in allowed:
            met.add(text)
        # one way to each text is enough: another way to it is an equal text
        waiting += [[*way, token] for token in allowed - {0} if len(way) < 4]
    reached = {text for text in language if len(text) <= 4}
    assert met >= reached


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_s_rows_are_those_of_each_path_alone(seed: int) -> None:
    """Any tree, its nodes in any order: wrong tokens, stop tokens, and what is below them."""
    rng, toy = random.Random(seed), LETTERS
    expression, size = rng.choice(EXPRESSIONS), len(toy.texts)
    grammars = toy.grammars()
    matcher = grammars.matcher("regex", expression)
    text: list[int] = []
    for _ in range(3):
        count = rng.randrange(40)
        tokens = [rng.randrange(size) for _ in range(count)]
        parents = [rng.randrange(node) for node in range(1, count + 1)]
        masks = matcher.masks(tokens, parents)
        for node in range(count + 1):
            path, above = [], node
            while above:
                path.append(tokens[above - 1])
                above = parents[above - 1]
            assert row_of(grammars.matcher("regex", expression), text, path[::-1], size) == bits(
                masks[node], size
            ), (text, path[::-1])
        more = sorted(bits(masks[0], size) - toy.stop_ids)
        if not more:
            break
        text.append(rng.choice(more))
        matcher.advance(text[-1:])


def row_of(matcher: Matcher, text: list[int], path: list[int], size: int) -> set[int]:
    """One path after another token, each asked for alone."""
    matcher.advance(text)
    for token in path:
        allowed = bits(matcher.masks([], [])[0], size)
        if token not in allowed:
            return set()
        if token == 0:
            return set(range(size))
        matcher.advance([token])
    return bits(matcher.masks([], [])[0], size)


JSON = Toy(
    [
        *'{}[]":,abnetrulfs0159-. \n\\',
        *("true", "false", "null", '"a"', '{"', '":', '"}', "10"),
        *(bytes([byte]) for byte in "é".encode()),
    ]
)
SCHEMAS = [
    {"type": "boolean"},
    {"enum": ["a", 1, None, [True], {"b": 0}]},
    {"type": "integer", "minimum": -1, "maximum": 10},
    {"type": "string", "maxLength": 2},
    {"type": "string", "pattern": "^a+b?$", "maxLength": 3},
    {"type": ["null", "number"], "multipleOf": 0.5, "minimum": 0, "maximum": 1},
    {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"const": 1}},
        "required": ["b"],
        "additionalProperties": False,
    },
    {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1},
    {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
        "a": {"type": "object", "properties": {"a": {"const": "a"}}, "required": ["a"]},
        "b": {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"]},
    }},
    {"allOf": [{"type": "array", "maxItems": 1}, {"items": {"type": "boolean"}}]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_every_text_that_may_end_is_valid_under_the_schema(schema: dict) -> None:
    """Random walks by the masks: where the stop token is allowed, the text is a valid answer."""
    rng, toy, ended = random.Random(1), JSON, 0
    validator = jsonschema.Draft202012Validator(schema)
    grammars, size = toy.grammars(), len(toy.texts)
    for _ in range(40):
        matcher, text = grammars.matcher("json_schema", json.dumps(schema)), b""
        for _ in range(24):
            allowed = bits(matcher.masks([], [])[0], size)
            assert allowed, text
            if 0 in allowed:
                validator.validate(json.loads(text))
                ended += 1
            if not allowed - {0}:
                break
            token = rng.choice(sorted(allowed - {0}))
            text += toy.texts[token] or b""
            matcher.advance([token])
    assert ended > 5


VALUES = [None, True, False, 0, 1, -1, 10, 0.5, 1.5, "", "a", "ab", "aab", "b", "aaa", "é", '"']
VALUES += [[], [None], [None, None], [True], [0], {}, {"a": None}, {"b": 0}, {"b": 1}]
VALUES += [{"a": True, "b": 1}, {"a": 1, "b": 1}, {"a": "a"}, {"a": "b"}, {"a": "a", "b": 0}]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_every_value_is_allowed_that_the_schema_allows(schema: dict) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        for separators in ((",", ":"), (", ", ": ")):
            written = json.dumps(value, separators=separators, ensure_ascii=False).encode()
            assert is_whole(JSON, schema, written) == validator.is_valid(value), written


def is_whole(toy: Toy, schema: dict, text: bytes) -> bool:
    """Whether the masks allow the text, byte by byte, and then its end."""
    matcher = toy.grammars().matcher("json_schema", json.dumps(schema))
    for byte in text:
        token = toy.texts.index(bytes([byte]))
        if token not in bits(matcher.masks([], [])[0], len(toy.texts)):
            return False
        matcher.advance([token])
    return 0 in bits(matcher.masks([], [])[0], len(toy.texts))


def test_the_first_token_is_spelled_without_its_space() -> None:
    """Sentence pieces lose it in front of a text, and there alone."""
    toy = Toy([" a", "a", " b", "b", " ", "  a"], drops_space=True)
    matcher = toy.grammars().matcher("regex", "a( b)?")
    masks = matcher.masks([2, 3, 4, 3], [0, 0, 1, 3])
    assert bits(masks[0], 8) == {2, 3}  # " a" is "a" here; "  a" would be " a"
    assert bits(masks[1], 8) == bits(masks[2], 8) == {0, 4, 6}
    assert bits(masks[3], 8) == {0}
    matcher.advance([2, 4])
    assert bits(matcher.masks([], [])[0], 8) == {0}


def test_what_no_token_spells_leaves_an_empty_row_and_the_rest_of_the_tree_whole() -> None:
    toy = Toy(["a", "b"])
    matcher = toy.grammars().matcher("regex", "a(x|b?)|ba|bx?")
    masks = matcher.masks([2, 3, 3, 2, 2], [0, 0, 1, 2, 3])
    assert [bits(row, 4) for row in masks] == [{2, 3}, {0, 3}, {0, 2}, {0}, {0}, set()]
    stuck = Toy(["a", "b"]).grammars().matcher("regex", "b|ax")
    masks = stuck.masks([2, 3, 2], [0, 0, 1])
    assert [bits(row, 4) for row in masks] == [{2, 3}, set(), {0}, set()]
    stuck.advance([3])
    assert bits(stuck.masks([], [])[0], 4) == {0}


def test_an_answer_that_does_not_fit_is_refused() -> None:
    matcher = LETTERS.grammars().matcher("regex", "abc")
    matcher.advance([LETTERS.texts.index(b"ab")])
    with pytest.raises(ValueError, match="token 1 of the answer is not one"):
        matcher.advance([LETTERS.texts.index(b"a")])
    assert not matcher.masks([], []).any()
    assert not matcher.after([[], [2]]).any()
    with pytest.raises(ValueError, match="not one"):
        matcher.advance([LETTERS.texts.index(b"c")])


def test_what_comes_behind_the_end_is_not_of_the_answer() -> None:
    matcher = LETTERS.grammars().matcher("regex", "abc")
    matcher.advance([LETTERS.texts.index(b"abc"), 0, 5])
    assert bits(matcher.masks([], [])[0], len(LETTERS.texts)) == {0}


def test_a_text_may_be_empty() -> None:
    matcher = LETTERS.grammars().matcher("regex", "(abc)?")
    masks = matcher.masks([0, 5], [0, 1])
    assert 0 in bits(masks[0], 12)
    assert bits(masks[1], 12) == set(range(12))
    # what is drawn behind the end is cut; but it has to be drawn
    assert bits(masks[2], 12) == set(range(12))
