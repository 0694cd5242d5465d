"""Everything about tools and thoughts for one request: what is sent to the model, what it may write
and how that is read.

A request is checked against what the model's chat template can do: what it would leave out without
a word is refused. Raises APIError with the field that has to change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.api.errors import APIError
from runtime.api.tools.chat_format import Calls, ChatFormat, chat_format
from runtime.api.tools.conversation import Message, conversation
from runtime.api.tools.grammar import Calling, Function, Thinking, enforceable, lark
from runtime.api.tools.parser import MARKS, Parser
from runtime.constraint import MOST_BYTES, Constraint
from runtime.model.text_stream import TextStream

if TYPE_CHECKING:
    from runtime.edge.options import RequestOptions
    from runtime.model.tokenizer import Tokenizer

FUNCTION_NAME = re.compile(r"[\w./:-]{1,128}")
MAX_FUNCTIONS = 512
TAIL_TOKENS = 16  # of a prompt, that say whether it has begun thoughts
DROPS_CALLS = "the chat template of this model leaves the calls of earlier turns out"
NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Choosing:
    """What a request says of its tools, whichever endpoint it came to.

    tools: as OpenAI's chat has them; choice: "none", "auto", "required" or a function's name;
    parallel: whether an answer may have several calls, None where nothing is said.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    choice: str = "auto"
    parallel: bool | None = None
    functions: Sequence[Function] = ()


@dataclass(frozen=True)
class Use:
    """One request to one model."""

    messages: Sequence[Message]
    choosing: Choosing
    form: ChatFormat
    tokenizer: Tokenizer
    schema: Any = None  # of content
    schema_field: str = "response_format"  # that it came in

    @classmethod
    def of(
        cls,
        messages: Sequence[Message],
        choosing: Choosing,
        template: str | None,
        tokenizer: Tokenizer,
        schema: Any = None,
        schema_field: str = "response_format",
        places: Sequence[str] | None = None,
    ) -> Use:
        """Raises APIError for messages or tools that the template cannot write.

        places: where in the request each message is, for errors.
        """
        form = chat_format(template or "")
        if choosing.tools and form.calls is None:
            raise APIError(400, form.refusal, param="tools", code="unsupported_parameter")
        written = conversation(messages, places)
        if not form.writes_calls:
            written = [_as_text(message, form) for message in written]
        return cls(written, choosing, form, tokenizer, schema, schema_field)

    @property
    def of_conversation(self) -> RequestOptions:
        """Options by which the messages become a prompt."""
        options: RequestOptions = {"tools": self.choosing.tools or None}
        # the edge's own would be a second one, which is not meant and refused by some templates
        if any(message["role"] == "system" for message in self.messages):
            options["system"] = None
        return options

    @property
    def marks(self) -> tuple[str, ...]:
        """What the parser looks for, even where it is a control token."""
        calls = self.form.calls if self.choosing.tools else None
        marks = (
            [*MARKS[calls], *(("[ARGS]", "[CALL_ID]") * (calls is Calls.NAMED))] if calls else []
        )
        return (*marks, *(self.form.thoughts or ()))

    def is_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within thoughts that it has begun."""
        if self.form.thoughts is None:
            return False
        stream = TextStream(self.tokenizer.showing(self.form.thoughts))
        tail = stream.push(prompt[-TAIL_TOKENS:]) + stream.finish()
        return tail.rstrip().endswith(self.form.thoughts[0])

    def parser(self, prompt: Sequence[int]) -> Parser:
        """For the text of an answer to this prompt."""
        schemas = {one.name: one.parameters for one in self.choosing.functions}
        calls = self.form.calls if self.choosing.tools else None
        return Parser(calls, schemas, self.form.thoughts, self.is_thinking(prompt))

    def options(self, prompt: Sequence[int]) -> RequestOptions:
        """Those of an answer to this prompt. Raises APIError for what cannot be enforced."""
        constraint = self.constraint(prompt)
        options: RequestOptions = {"spelled": self.marks}
        return options if constraint is None else {**options, "constraint": constraint}

    def constraint(self, prompt: Sequence[int]) -> Constraint | None:
        """What an answer has to be; None where it may be anything."""
        calling, thinking = self._calling(), self._thinking(prompt)
        if calling is None and self.schema is None:
            return None
        if calling is None and thinking is None:
            return Constraint("json_schema", json.dumps(self.schema))
        try:
            if calling is not None:
                functions = enforceable(calling.functions, MOST_BYTES // 2)
                calling = replace(calling, functions=functions)
            return Constraint("lark", lark(self._spelled, calling, thinking, self.schema))
        except ValueError as error:
            raise APIError(400, str(error), param=self.constrained_by) from error

    @property
    def constrained_by(self) -> str | None:
        """The field that makes an answer be something, None where it may be anything."""
        if self._calling() is not None:
            return "tools"
        return self.schema_field if self.schema is not None else None

    def _calling(self) -> Calling | None:
        """None where a model may call, or not, as it likes."""
        choice, functions = self.choosing.choice, self.choosing.functions
        if not functions or self.form.calls is None:
            return None
        several = self.choosing.parallel is not False
        if choice == "auto":
            free = several and self.schema is None and not any(one.strict for one in functions)
            must = False
        else:
            free, must = False, True
            functions = [one for one in functions if choice in ("required", one.name)]
        return None if free else Calling(self.form.calls, functions, must, several)

    def _thinking(self, prompt: Sequence[int]) -> Thinking | None:
        if self.form.thoughts is None:
            return None
        return Thinking(*self.form.thoughts, self.is_thinking(prompt))

    def _spelled(self, mark: str) -> str:
        """A mark within a grammar: a control token by its number, or a text."""
        ids = self.tokenizer.control_ids([mark])
        return f"<[{min(ids)}]>" if ids else json.dumps(mark)


def choosing(
    tools: Sequence[Any] | None, choice: Any = None, parallel: bool | None = None
) -> Choosing:
    """What `tools`, `tool_choice` and `parallel_tool_calls` of a chat say. Raises APIError."""
    given = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools or [])]
    if len(given) > MAX_FUNCTIONS:
        raise APIError(
            400, f"tools has {len(given)} functions; at most {MAX_FUNCTIONS}", param="tools"
        )
    functions = [function for _, function in given]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise APIError(400, "tools has two functions of one name", param="tools")
    chosen, allowed = _choice(choice, names)
    kept = [number for number, name in enumerate(names) if name in allowed]
    # a model that is not to call anything hears of nothing to call
    if chosen == "none" or not kept:
        return Choosing()
    described = [given[number][0] for number in kept]
    return Choosing(described, chosen, parallel, [functions[number] for number in kept])


def _tool(tool: Any, place: str) -> tuple[dict[str, Any], Function]:
    """A tool as templates know it, and as it is called."""
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if kind != "function":
        raise APIError(
            400, f"{place} is of the type {kind!r:.40}; there are functions", param=place
        )
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        place = f"{place}.function.name"
        raise APIError(400, f"{place} is {name!r:.40}; expected a short name", param=place)
    assert isinstance(function, Mapping), "it has a name"
    parameters = function.get("parameters")
    if (
        not isinstance(parameters or {}, Mapping)
        or (parameters or {}).get("type", "object") != "object"
    ):
        place = f"{place}.function.parameters"
        raise APIError(400, f"{place} is no JSON schema of an object", param=place)
    described = {
        "name": name,
        "description": str(function.get("description") or ""),
        "parameters": parameters or NO_PARAMETERS,
    }
    return (
        {"type": "function", "function": described},
        Function(name, parameters or NO_PARAMETERS, function.get("strict") is True),
    )


def _choice(choice: Any, names: Sequence[str]) -> tuple[str, Sequence[str]]:
    """ "none", "auto", "required" or a function's name; and the names of those that it is among."""
    match choice:
        case None:
            return "auto", names
        case "none" | "auto" | "required":
            return choice, names
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}:
            chosen = [_choice(tool, names)[0] for tool in tools]
            return _choice(mode, names)[0], [name for name in names if name in chosen]
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return name, names
    raise APIError(
        400,
        f'tool_choice is {choice!r:.80}; expected "none", "auto", "required" or one of the tools',
        param="tool_choice",
    )


def _as_text(message: dict[str, Any], form: ChatFormat) -> dict[str, Any]:
    """A message whose calls are in its content, for a template that would leave them out."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    if form.calls is not Calls.JSON:
        raise APIError(
            400, form.refusal or DROPS_CALLS, param="messages", code="unsupported_parameter"
        )
    written = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in calls
    ]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, [message["content"], *written]))}
