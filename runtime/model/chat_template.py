"""A conversation written as its model was trained on it, by the template that came with it.

transformers renders the same, but takes a second to import; jinja2 is imported when a conversation
is written.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Tools = Sequence[Mapping[str, Any]]


def rendered(
    source: str, messages: Sequence[Mapping[str, Any]], variables: Any, tools: Tools | None = None
) -> str:
    """The text of a conversation up to where the answer begins.

    messages: what a template finds in `messages`, but for keys whose value is None; they must be
    JSON. variables: by name, such as the special tokens. tools: as OpenAI's API has them, JSON too.
    Raises ValueError for a conversation without messages and whatever the template raises.
    """
    if not messages:
        raise ValueError("an empty conversation cannot be written; give at least one message")
    given = [{key: item for key, item in one.items() if item is not None} for one in messages]
    from runtime.model.template_language import compiled

    # objects have methods that the sandbox does not know: what it gets was read from a text
    plain = json.loads(json.dumps({"messages": given, "tools": tools or None}))
    if tools:
        plain["xml_tools"] = plain["tools"]  # SmolLM3 asks for the form that it is to call them in
    # transformers names this even where there are none, and templates ask if they are none
    return compiled(source).render(
        add_generation_prompt=True, **{"documents": None, **plain, **variables}
    )
