"""What an answer must be, as OpenAI's `response_format` and vLLM's names for it say."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.api.errors import APIError
from runtime.constraint import Constraint

ANY_OBJECT = {"type": "object"}


class JSONSchema(msgspec.Struct):
    """`strict` is not heard: what is asked for always holds."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=4096)]


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's; one of them."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Choices | None = None
    json_object: bool | None = None


def constraint_of(
    wanted: ResponseFormat | None, structured: StructuredOutputs | None
) -> Constraint | None:
    """The one constraint of a request, None for any text. Raises APIError."""
    first = _of_format(wanted) if wanted else None
    second = _of_outputs(structured) if structured else None
    if first is not None and second is not None:
        raise APIError(
            400, "give response_format or structured_outputs, not both", param="structured_outputs"
        )
    return first or second


def _of_format(wanted: ResponseFormat) -> Constraint | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _schema(ANY_OBJECT, "response_format")
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        param = "response_format.json_schema"
        raise APIError(400, f"{param}: a json_schema has a schema", param=param)
    return _schema(wanted.json_schema.schema, "response_format.json_schema.schema")


def _of_outputs(structured: StructuredOutputs) -> Constraint | None:
    place = "structured_outputs"
    found = [
        _schema(structured.json, f"{place}.json") if structured.json is not None else None,
        _made("regex", structured.regex, f"{place}.regex") if structured.regex else None,
        _made("regex", _one_of(structured.choice), f"{place}.choice")
        if structured.choice
        else None,
        _schema(ANY_OBJECT, place) if structured.json_object else None,
    ]
    constraints = [one for one in found if one is not None]
    if len(constraints) > 1:
        raise APIError(400, f"{place} names more than one constraint; give one", param=place)
    return constraints[0] if constraints else None


def _schema(schema: dict[str, Any] | str, param: str) -> Constraint:
    text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    return _made("json_schema", text, param)


def _one_of(choices: list[str]) -> str:
    return "|".join(map(re.escape, choices))


def _made(kind: Literal["json_schema", "regex"], text: str, param: str) -> Constraint:
    try:
        return Constraint(kind, text)
    except ValueError as error:
        raise APIError(400, f"{param}: {error}", param=param) from error
