"""The examples of docs/extend.md, as they stand there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from runtime import Edge, EdgeConfig, Server, ServerConfig
from runtime.config import ConfigError
from runtime.named import named
from runtime.server.loop import credits_of

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


def test_options_name_what_is_written_so(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's drafter and policy, from a module of the user's, serve and draft."""
    (drafter, _), (policy, _) = examples()
    (tmp_path / "mine_of_the_page.py").write_text(
        drafter.partition("with Server(")[0]
        + policy.partition("policy = ")[0]
        + "from collections import defaultdict\nmade = []\n"
        + "def make(config): made.append(Followers()); return made[-1]\n"
        + "def by_weight(): made.append(Weighted(defaultdict(lambda: 1))); return made[-1]\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    server = ServerConfig(
        model=str(tiny_pair[0]), port=0, http="", credits="mine_of_the_page:by_weight",
        kv_tokens=4096, max_step_nodes=300,
    )  # fmt: skip
    with Server(server) as there:
        config = EdgeConfig(
            server=there.address, draft="none", tokenizer=str(tiny_pair[0]), max_tokens=24,
            drafter="mine_of_the_page:make",
        )  # fmt: skip
        with Edge(config) as edge:
            drafted = edge.generate("one two one two one two", raw=True)
            plain = edge.generate("one two one two one two", raw=True, max_budget=0)
            assert drafted.text == plain.text
    made = [type(one).__name__ for one in import_module("mine_of_the_page").made]
    assert made == ["Weighted", "Followers"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mine", "expected MODULE:NAME"),
        ("os:path:join", "expected MODULE:NAME"),
        ("no_such_module:it", "Python finds no module no_such_module"),
        ("json:it", "the module json has no it"),
    ],
)
def test_what_cannot_be_named_is_told_in_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        named(name, "--drafter")
    with pytest.raises(ConfigError, match="expected a subclass of Credits"):
        credits_of(ServerConfig(credits="collections:Counter"))
    with pytest.raises(ConfigError, match="it takes one of open, drr, or a class"):
        ServerConfig(credits="fair")


def test_all_examples_are_run() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(examples()) == 2
