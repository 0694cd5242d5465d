"""A conversation written as its model was trained on it: Jinja templates, run in a sandbox.

A template is a program of somebody else's. It gets what huggingface.co/docs/transformers promises
its authors (chat_templating_writing): `messages`, the special tokens by name, `raise_exception`,
`strftime_now`, `tojson`, `break` and `continue` in loops, and blocks named `generation`; and it
gets plain data only. transformers renders the same, but takes a second to import. jinja2 is
imported when a conversation is written.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, NoReturn


def rendered(source: str, messages: Sequence[Mapping[str, Any]], variables: Any) -> str:
    """The text of a conversation up to where the answer begins.

    messages: what a template finds in `messages`, but for keys whose value is None; they must be
    JSON. variables: by name, such as the special tokens. Raises ValueError for a conversation
    without messages and whatever the template raises.
    """
    if not messages:
        raise ValueError("an empty conversation cannot be written; give at least one message")
    given = [{key: item for key, item in one.items() if item is not None} for one in messages]
    # objects have methods that the sandbox does not know: what it gets was read from a text
    plain = json.loads(json.dumps(given))
    # transformers names these two even where there are none, and templates ask if they are none
    none = {"tools": None, "documents": None}
    return _compiled(source).render(
        messages=plain, add_generation_prompt=True, **{**none, **variables}
    )


@lru_cache(maxsize=4)  # a chat renders the same one at every turn
def _compiled(source: str) -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %}: marks for training what the model wrote; the text is its body's."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PlainNamespace(Namespace):
        """jinja's, without names by which Python would call what a template put there."""

        def __init__(*args: Any, **attributes: Any):
            own, *values = args
            named = dict(*values, **attributes)
            Namespace.__init__(own)
            for name, value in named.items():
                own[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace takes no name like {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(source)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes what HTML would obey, and knows no other options."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
