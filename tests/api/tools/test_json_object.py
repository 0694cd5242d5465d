"""An object is one exactly where Python's json says so, and its fields have the values it says."""

import json

from hypothesis import given
from hypothesis import strategies as st

from runtime.api.tools.json_object import MAX_DEPTH, JsonObject

BITS = [
    *'{}[]":,\\u-',
    "0041",
    "a",
    " ",
    "\n",
    "1",
    "0",
    ".5",
    "e+1",
    "true",
    "nul",
    '{"a":',
    "\x01",
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(text):
    """Whether a text is an object, and the text of each field's value."""
    whole, fields = JsonObject(), {}
    for character in text:
        if whole.ended:
            return False, {}
        try:
            field = whole.push(character)
        except ValueError:
            return False, {}
        if field is not None:
            fields[field] = fields.get(field, "") + character
    return whole.ended, fields


def expected(text):
    try:
        value = json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if isinstance(value, dict) and text[-1] == "}" else None


@given(value=st.dictionaries(st.text(), values, max_size=4), style=st.sampled_from([None, 1]))
def test_an_object_is_read_with_its_fields(value, style):
    for ascii_only in (True, False):
        text = json.dumps(value, indent=style, ensure_ascii=ascii_only)
        is_whole, fields = read(text)
        assert is_whole
        assert {key: json.loads(part) for key, part in fields.items()} == value


@given(
    value=st.dictionaries(st.text(max_size=3), values, max_size=3),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.sampled_from(BITS))),
)
def test_what_is_none_is_found_out(value, cuts):
    text = json.dumps(value)
    for place, length, bit in cuts:
        text = text[:place] + bit + text[place + length :]
    assert read(text)[0] == (expected(text) is not None)


@given(bits=st.lists(st.sampled_from(BITS), max_size=14))
def test_random_bits(bits):
    text = "{" + "".join(bits)
    assert read(text)[0] == (expected(text) is not None)


def test_depth_is_bounded():
    def deep(levels):
        return '{"a":' * (levels - 1) + "{" + "}" * levels

    assert read(deep(MAX_DEPTH))[0]
    assert not read(deep(MAX_DEPTH + 1))[0]
