"""What an answer must be, where a request says so: vLLM's `structured_outputs`, and a schema."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.api.errors import APIError
from runtime.api.tools.schema import ANY_OBJECT
from runtime.constraint import Constraint

PLACE = "structured_outputs"


Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=4096)]


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's; one of them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Choices | None = None
    json_object: bool | None = None


def constraint_of(structured: StructuredOutputs | None, schema: Any = None) -> Constraint | None:
    """The one constraint of an answer, None for any text.

    schema: that of a response_format, None without one. Raises APIError for more than one.
    """
    given = structured or StructuredOutputs()
    found = [
        _made("json_schema", _text(schema), "response_format") if schema is not None else None,
        _made("json_schema", _text(given.json), f"{PLACE}.json")
        if given.json is not None
        else None,
        _made("json_schema", _text(ANY_OBJECT), PLACE) if given.json_object else None,
        _made("regex", given.regex, f"{PLACE}.regex") if given.regex is not None else None,
        _made("regex", _one_of(given.choice), f"{PLACE}.choice") if given.choice else None,
    ]
    constraints = [one for one in found if one is not None]
    if len(constraints) > 1:
        raise APIError(400, "an answer can have one constraint; give one of these", param=PLACE)
    return constraints[0] if constraints else None


def check_alone(structured: StructuredOutputs | None, tools: Any, schema: Any) -> None:
    """Raises APIError where an answer would have a second constraint, of tools or a schema."""
    if structured and (tools or schema is not None):
        sentence = f"{PLACE} does not go with tools or a schema; give one of them"
        raise APIError(400, sentence, param=PLACE)


def _text(schema: Any) -> str:
    return schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()


def _one_of(choices: list[str]) -> str:
    return "|".join(map(re.escape, choices))


def _made(kind: Literal["json_schema", "regex"], text: str, param: str) -> Constraint:
    try:
        return Constraint(kind, text)
    except ValueError as error:
        raise APIError(400, f"{param}: {error}", param=param) from error
