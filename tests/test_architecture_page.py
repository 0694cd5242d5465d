"""docs/architecture.md names files, functions, phases and moves that there are."""

import re
from pathlib import Path

import pytest

from runtime.server.request import Phase, Request

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MOVES = re.findall(r"^ +(\S+) --> (\S+) : (.*)$", TEXT, re.MULTILINE)


def path_of(name: str) -> Path:
    """A file by the name it has on the page: from the root, from runtime/, or its own alone."""
    for path in (ROOT / name, ROOT / "runtime" / name, ROOT / "runtime/server" / name):
        if path.exists():
            return path
    (found,) = (ROOT / "runtime/server").rglob(name)
    return found


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+(?:\.\w+|/))[`:]", TEXT))))
def test_a_file_on_the_page_is_there(name: str) -> None:
    assert path_of(name).exists()


@pytest.mark.parametrize(("name", "what"), sorted(set(re.findall(r"`([\w/]+\.py): (\w+)`", TEXT))))
def test_a_function_on_the_page_is_there(name: str, what: str) -> None:
    source = path_of(name).read_text(encoding="utf-8")
    assert re.search(rf"(def|class) {what}\b", source)


def test_every_module_directly_in_runtime_is_on_the_page() -> None:
    """Those are for all parts, so whoever looks for a part must not stumble over them."""
    named = set(re.findall(r"`(?:runtime/)?(\w+\.py)`", TEXT))
    assert {path.name for path in (ROOT / "runtime").glob("*.py")} <= named


def test_the_picture_can_be_drawn() -> None:
    """Mermaid takes these two for the end of a label."""
    assert not [how for *_, how in MOVES if re.search("[;:]", how)]


def test_the_phases_are_those_of_a_request() -> None:
    told = {phase for move in MOVES for phase in move[:2]} - {"[*]"}
    assert told == {phase.name for phase in Phase}


def test_a_move_is_a_method_of_a_request() -> None:
    words = {word for *_, how in MOVES for word in re.findall(r"[a-z_]{4,}", how)}
    methods = {name for name in vars(Request) if not name.startswith("_")}
    moves = {"read", "admit", "enter_step", "leave_step", "follow", "told", "credited"}
    moves |= {"line_up", "accept_draft"}
    assert moves <= methods & words
