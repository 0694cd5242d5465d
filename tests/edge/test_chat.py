"""Conversations in a terminal with a template that refuses some of them, over a real server."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.config import ConfigError, EdgeConfig
from runtime.console import Terminal
from runtime.demo import running_server
from runtime.edge.chat import chat, stream_pieces
from runtime.edge.client import Edge
from runtime.terminal import inert
from tests.conftest import CHAT_TEMPLATE

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif 'boom' in m.content %}{{ 1 // 0 }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)


@pytest.fixture(scope="module")
def refusing(
    tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, object]]:
    """Options for a pair of which both have the template, whosever counts; and an odd name."""
    folders = []
    for folder in tiny_pair:
        copy = tmp_path_factory.mktemp("refusing") / "[/red]{y}\x1b[2J"
        shutil.copytree(folder, copy)
        assert (copy / "chat_template.jinja").read_text() == CHAT_TEMPLATE
        (copy / "chat_template.jinja").write_text(REFUSING)
        folders.append(str(copy))
    options = ("--model", folders[0], "--port", "0", "--threads", "1", "--http", "")
    with running_server(*options) as address:
        yield {"server": address, "draft": folders[1], "max_tokens": 12, "stats": False}


def typing(*lines: str) -> Callable[[str], str]:
    typed = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    return read_line


def test_a_chat_drops_a_turn_that_is_refused_and_goes_on(refusing: dict[str, object]) -> None:
    console = Terminal(file=io.StringIO(), width=200)
    with Edge(EdgeConfig(**refusing)) as edge:
        chat(edge, console, typing("one", "boom", "caf\udce9", "two"))
        said = console.file.getvalue().split("\n", 1)[1]  # behind the help
        first = "".join(piece.text for piece in edge.generate("one"))
        turns = [("user", "one"), ("assistant", first), ("user", "two")]
        messages = [{"role": role, "content": text} for role, text in turns]
        second = "".join(piece.text for piece in edge.generate(messages))
    refusals = [
        "the chat template refuses this conversation: integer division or modulo by zero",
        "the text is not valid Unicode: it has a lone surrogate",
    ]
    assert said == "\n".join([inert(first), *refusals, inert(second), "", ""])


def test_a_chat_that_can_have_no_turn_does_not_begin(refusing: dict[str, object]) -> None:
    def never(prompt: str) -> str:
        raise AssertionError("a line was asked for")

    console = Terminal(file=io.StringIO())
    with Edge(EdgeConfig(**refusing, system="Be brief.")) as edge:
        with pytest.raises(ConfigError, match="no system role"):
            chat(edge, console, never)
        with pytest.raises(ConfigError, match="no system role"):
            edge.generate("x")
        assert list(edge.generate("x", system=None)), "options of one request count"
        with pytest.raises(ConfigError, match="no switch for thinking"):
            edge.generate("x", system=None, enable_thinking=False)
    assert console.file.getvalue() == ""


def test_a_terminal_sees_text_and_a_program_the_bytes(refusing: dict[str, object]) -> None:
    """A model of random weights writes every control character sooner or later."""
    console = Terminal(file=io.StringIO(), force_terminal=False)
    with Edge(EdgeConfig(**refusing)) as edge:
        asked = {"max_tokens": 400, "temperature": 2.0}
        raw = "".join(piece.text for piece in edge.generate("x", **asked))
        assert stream_pieces(edge.generate("x", **asked), console) == raw
    assert "\x1b" in raw
    assert console.file.getvalue() == inert(raw) + "\n"
