"""JSON schemas made ready for llguidance, and what of them it would not hold an answer to.

llguidance refuses by itself the keywords that it does not know. Here is the rest: what it takes
and cannot keep, what it refuses although it could keep it, and what it needs too long for.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

# One run of white space between two tokens of JSON. A model that has lost its way writes it for
# ever if it may.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"
# llguidance's automaton has as many states, which take it a second. Without their points: where two
# are to hold at once, it works with whole numbers.
MOST_MULTIPLE = 100_000
MOST_DIGITS = 25  # of a "multipleOf", before its point or behind it
MOST_REFERENCES = 64  # that are followed, one to the next

# whether it is the lowest value that a number may have, or the highest
BOUNDS = {"minimum": True, "exclusiveMinimum": True, "maximum": False, "exclusiveMaximum": False}
INTEGERS_END = 2**63  # those that llguidance counts with
# keywords whose values are data, whatever keywords that seems to have
DATA = ("const", "enum", "default", "examples", "example")
OPTIONS = "x-guidance"


def parsed(text: str) -> Any:
    """The schema that a text has. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON schema is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the JSON schema is no JSON: {error}") from None


def ready(schema: Any) -> Any:
    """The schema with llguidance's options. Raises ValueError for what cannot be enforced."""
    if isinstance(schema, Mapping) and OPTIONS in schema:
        raise ValueError(f'the JSON schema has "{OPTIONS}", which is set by the server')
    check(schema)
    if not isinstance(schema, Mapping):
        return schema
    options = {"whitespace_pattern": WHITE_SPACE, "coerce_one_of": is_exclusive(schema)}
    return {**schema, OPTIONS: options}


def check(schema: Any) -> None:
    """Raises ValueError for what llguidance takes and would not keep, or takes too long for."""
    multiples = [Decimal(1)]
    for part in _parts(schema):
        _check_numbers(part)
        multiples += _multiple(part.get("multipleOf"))
        least, required = part.get("minProperties"), part.get("required")
        known = len(required) if isinstance(required, list) else 0
        # it allows a name that is not listed twice; whoever reads the JSON counts it once
        if isinstance(least, int) and least > 1 + known:
            raise ValueError(
                f'the JSON schema has "minProperties": {least} with {known} required, which cannot '
                "be enforced: at most one more than is required can"
            )
    points = min(int(multiple.as_tuple().exponent) for multiple in multiples)
    if math.lcm(*(int(multiple.scaleb(-points)) for multiple in multiples)) > MOST_MULTIPLE:
        raise ValueError(
            'the JSON schema has "multipleOf" with numbers of too many digits; without decimal '
            f"points, their least common multiple may be {MOST_MULTIPLE} at most"
        )


def is_exclusive(schema: Mapping[str, Any]) -> bool:
    """Whether no value can fit two alternatives of any "oneOf": then it says what "anyOf" says.

    True only where that is plain to see: of two alternatives, the types differ, or the values of
    a property that both require, as those of a discriminator do.
    """
    for part in _parts(schema):
        options = part.get("oneOf")
        if isinstance(options, list):
            found = [_resolved(option, schema) for option in options]
            pairs = ((a, b) for place, a in enumerate(found) for b in found[:place])
            if not all(_differ(a, b, schema) for a, b in pairs):
                return False
    return True


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Each object of a schema that may have keywords."""
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, Mapping):
            yield part
            stack.extend(value for name, value in part.items() if name not in DATA)
        elif isinstance(part, list):
            stack.extend(part)


def _check_numbers(part: Mapping[str, Any]) -> None:
    """Raises ValueError for whole numbers that become others within llguidance.

    It keeps numbers as doubles, and bounds of integers then in 64 bits. A bound may so come to lie
    farther in, but not farther out, and has to be more than the least of these integers.
    """
    for name, is_lowest in BOUNDS.items():
        bound: Any = part.get(name)
        if (kept := _kept(bound)) is None:
            continue
        is_farther = kept < bound if is_lowest else kept > bound
        if kept == -INTEGERS_END or is_farther:
            raise ValueError(_rounded(name, bound))
    for name in ("const", "enum"):
        for value in _numbers(part.get(name)):
            if abs(value) >= INTEGERS_END or float(value) != value:
                raise ValueError(_rounded(name, value))


def _kept(bound: Any) -> Any:
    """The number that becomes of a bound that is a whole one; None where it is none."""
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return None
    if not abs(bound) < INTEGERS_END:
        return INTEGERS_END - 1 if bound > 0 else -INTEGERS_END
    if bound != int(bound):
        return None
    return max(-INTEGERS_END, min(int(float(bound)), INTEGERS_END - 1))


def _numbers(value: Any) -> Iterator[float]:
    """Those in a value of JSON; true and false, which are numbers in Python, do no harm."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, Mapping):
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
        elif isinstance(one, int | float):
            yield one


def _rounded(name: str, value: float) -> str:
    return (
        f'the JSON schema has {value!r:.40} as "{name}", which cannot be enforced: whole numbers '
        "beyond 9007199254740992 are rounded, and integers end at 9223372036854775807"
    )


def _multiple(value: Any) -> list[Decimal]:
    """A number that values are multiples of; none for what is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return []
    exact = Decimal(repr(value))
    if not -MOST_DIGITS < exact.adjusted() < MOST_DIGITS:
        raise ValueError(f'the JSON schema has "multipleOf": {value:g}, which is out of range')
    return [exact]


def _resolved(part: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a part says, its references followed; empty where that is not plain to see."""
    for _ in range(MOST_REFERENCES):
        if not isinstance(part, Mapping):
            return {}
        place = part.get("$ref")
        if not isinstance(place, str):
            return part
        if not place.startswith("#/"):
            return {}
        part = schema
        for name in place[2:].split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            part = part.get(name) if isinstance(part, Mapping) else None
    return {}


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether it is plain that no value fits both."""
    types = _types(a), _types(b)
    if types[0] and types[1] and not types[0] & types[1]:
        return True
    texts = _texts(a), _texts(b)
    if texts[0] and texts[1] and not texts[0] & texts[1]:
        return True
    if not types[0] == types[1] == {"object"}:
        return False
    both = set(_names(a.get("required"))) & set(_names(b.get("required")))
    return any(_texts_differ(name, a, b, schema) for name in both)


def _texts_differ(
    name: str, a: Mapping[str, Any], b: Mapping[str, Any], schema: Mapping[str, Any]
) -> bool:
    """Whether a property of this name has other texts in one than in the other."""
    found = []
    for part in (a, b):
        properties = part.get("properties")
        value = properties.get(name) if isinstance(properties, Mapping) else None
        found.append(_texts(_resolved(value, schema)))
    return bool(found[0] and found[1]) and not found[0] & found[1]


def _types(part: Mapping[str, Any]) -> set[str]:
    """The types that a part allows; empty where it does not say."""
    types = part.get("type")
    names = {types} if isinstance(types, str) else set(_names(types))
    return {"number" if name == "integer" else name for name in names}


def _texts(part: Mapping[str, Any]) -> set[str]:
    """The only texts that a part allows; empty where it allows others, or other things."""
    values = [part["const"]] if "const" in part else part.get("enum")
    names = set(_names(values))
    return names if isinstance(values, list) and len(names) == len(values) else set()


def _names(values: Any) -> Sequence[str]:
    """The texts of a list."""
    found = values if isinstance(values, list) else []
    return [value for value in found if isinstance(value, str)]
