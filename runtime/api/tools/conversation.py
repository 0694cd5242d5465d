"""A client's messages as chat templates expect them.

Templates are written for what models were trained on: contents are texts, arguments are objects,
and what is not there is left out. Clients send what OpenAI's API allows. Raises APIError for what
is neither, with the place in the request as its param.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.api.errors import APIError

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# kinds of parts that are text, with the key that has it
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
ID_LETTERS = 9  # of a call's id in Mistral's templates, which refuse all others
SHORT_ID = re.compile(rf"[0-9A-Za-z]{{{ID_LETTERS}}}")


def conversation(
    messages: Sequence[Message], places: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The messages with texts for contents, and calls whose arguments are objects.

    A developer is the system to templates; ids of calls have nine letters, each time the same ones
    for the same id; the answer of a tool has the tool's name.

    places: where in the request each message is, messages[0] and so on if not given. Raises
    APIError.
    """
    written, names = list[dict[str, Any]](), dict[str, str]()
    for number, message in enumerate(messages):
        place = places[number] if places else f"messages[{number}]"
        match message.get("role"):
            case "system" | "developer":
                one = {"role": "system", "content": _content(message, place)}
            case "user":
                one = {"role": "user", "content": _content(message, place)}
            case "assistant":
                one = _answer(message, place, names)
            case "tool" | "function":
                one = _result(message, place, names)
            case role:
                known = ", ".join(ROLES)
                raise _wrong(f"{place}.role", f"is {role!r:.40}; there are {known}")
        written.append(one)
    return written


def _answer(message: Message, place: str, names: dict[str, str]) -> dict[str, Any]:
    one: dict[str, Any] = {"role": "assistant", "content": _content(message, place)}
    for field in ("function_call", "audio"):
        if message.get(field):
            raise _wrong(f"{place}.{field}", "is not supported; send tool_calls and texts")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        one["reasoning_content"] = thought
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _wrong(f"{place}.tool_calls", "is no list")
    if calls:
        one["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{index}]", names) for index, call in enumerate(calls)
        ]
    return one


def _call(call: Any, place: str, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise _wrong(f"{place}.function.name", "is missing; a call is one of a function by name")
    assert isinstance(function, dict), "it has a name"
    given = str(call.get("id") or "")
    names[given] = name
    arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
    return {
        "id": short_id(given),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(given: Any, place: str) -> dict[str, Any]:
    """Clients send JSON in a text, and models know the object."""
    arguments = given
    if isinstance(given, str):
        try:
            arguments = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise _wrong(place, f"is not JSON: {error}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise _wrong(place, f"is {arguments!r:.40}; expected a JSON object")
    return arguments


def _result(message: Message, place: str, names: dict[str, str]) -> dict[str, Any]:
    one = {"role": "tool", "content": _content(message, place)}
    given = message.get("tool_call_id")
    if isinstance(given, str):
        one["tool_call_id"] = short_id(given)
    elif message.get("role") == "tool":
        raise _wrong(f"{place}.tool_call_id", "is missing; it says which call is answered")
    name = message.get("name") or names.get(str(given))
    return {**one, "name": name} if isinstance(name, str) else one


def _content(message: Message, place: str) -> str:
    """The text of a message; parts become lines, and nothing is an empty text."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(f"{place}.content", "is neither a text nor a list of parts")
    return "\n".join(_part(part, f"{place}.content[{index}]") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(TEXTS[kind]) if isinstance(part, dict) and kind in TEXTS else None
    if not isinstance(text, str):
        raise _wrong(place, f"is of the type {kind!r:.40}; this model reads text alone")
    return text


def short_id(given: str) -> str:
    """An id of a call in nine letters: those of this endpoint as they are."""
    if SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:ID_LETTERS]


def _wrong(place: str, sentence: str) -> APIError:
    return APIError(400, f"{place} {sentence}", param=place)
