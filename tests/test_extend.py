"""The examples of docs/extend.md, as they stand there."""

import re
from pathlib import Path

import pytest

LIMITS = "port=0, kv_tokens=4096, max_step_nodes=300"
PAGE = Path(__file__).parent.parent / "docs/extend.md"


def examples() -> list[tuple[str, str]]:
    """Each with what it prints."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(2))
def test_an_example_prints_what_the_page_says(
    number: int, tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The models of the tests stand for the embedded ones."""
    code, printed = examples()[number]
    code = code.replace('"smollm2"', repr(str(tiny_pair[0]))).replace("port=0", LIMITS)
    exec(compile(code, f"example {number}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == printed


def test_all_examples_are_run() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(examples()) == 2
