"""The examples of docs/extend.md, as they stand there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/extend.md"


def examples() -> list[tuple[str, str]]:
    """Each with what it prints."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(1))
def test_an_example_prints_what_the_page_says(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = examples()[number]
    exec(compile(code, f"example {number}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == printed


def test_all_examples_are_run() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(examples()) == 1
