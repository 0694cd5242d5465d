"""The JSON schema that the content of an answer has to fit, as the endpoints' bodies say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.api.errors import APIError

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def schema_of(given: Any, param: str) -> Any:
    """The schema of a response_format, None where content is free. Raises APIError.

    given: {"type": "text"}, {"type": "json_object"}, with llama.cpp's "schema", or {"type":
    "json_schema", "json_schema": {"schema": ...}}.
    """
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return given.get("schema") or ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": (dict() | bool()) as schema}}:
            return schema
        case {"type": "json_schema", "schema": (dict() | bool()) as schema}:
            return schema
    kinds = "text, json_object or json_schema with its schema"
    raise APIError(400, f"{param} is {given!r:.80}; expected the type {kinds}", param=param)
