"""What chat templates are written in: Jinja with a few more words, run in a sandbox.

A template is a program of somebody else's. It gets what huggingface.co/docs/transformers promises
its authors (chat_templating_writing): `messages`, the special tokens by name, `raise_exception`,
`strftime_now`, `tojson`, `break` and `continue` in loops, and blocks named `generation`; and it
gets plain data only.
"""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


@lru_cache(maxsize=4)  # a chat renders the same one at every turn
def compiled(source: str) -> Template:
    """Ready to render. Raises TemplateSyntaxError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(source)


class Generation(Extension):
    """{% generation %}: marks for training what the model wrote; the text is its body's."""

    tags = {"generation"}  # noqa: RUF012  (as jinja has it)

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


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


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
