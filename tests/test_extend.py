"""The examples of docs/extend.md, as they stand there."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from runtime import Edge, EdgeConfig, Server, ServerConfig
from runtime.config import ConfigError
from runtime.edge.loading import make_drafter
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
        ("spoilt_module:it", "to import spoilt_module raises SyntaxError: .*spoilt_module.py"),
        ("missing_parts:it", "Python finds no module no_such_part"),
        ("raising_module:it", r"raises KeyError: 'x' at .*raising_module.py:2"),
    ],
)
def test_what_cannot_be_named_is_told_in_a_sentence(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoilt_module.py").write_text("def it(:\n", encoding="utf-8")
    (tmp_path / "missing_parts.py").write_text("import no_such_part\n", encoding="utf-8")
    (tmp_path / "raising_module.py").write_text("here = {}\nhere['x']\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=sentence):
        named(name, "--drafter")
    with pytest.raises(ConfigError, match="it takes one of open, drr, or a class"):
        ServerConfig(credits="fair")


A_DRAFTER = "a drafter of the edge's config \\(docs/extend.md\\)"
NO_DRAFTER = r"a drafter, which has vocabulary_size, run and finish \(docs/extend.md\)"
A_POLICY = "a policy without being told anything \\(docs/extend.md\\)"
NO_POLICY = r"a policy, of a subclass of Credits \(docs/extend.md\)"


@pytest.mark.parametrize(
    ("name", "of_drafter", "of_credits"),
    [
        ("os:system", f"raises TypeError: .*; expected .*{A_DRAFTER}", f"TypeError: .*{A_POLICY}"),
        ("os:path", f"TypeError: 'module' .*{A_DRAFTER}", f"TypeError: 'module' .*{A_POLICY}"),
        ("json:load", f"at .*json.__init__.py:[0-9]+; .*{A_DRAFTER}", f"TypeError: .*{A_POLICY}"),
        ("collections:deque", f"TypeError: .*{A_DRAFTER}", f"made deque; .*{NO_POLICY}"),
        (
            "of_mine:nothing",
            f"made NoneType; expected {NO_DRAFTER}",
            f"made NoneType;.*{NO_POLICY}",
        ),
        (
            "of_mine:cls",
            f"made the class Half; .*{NO_DRAFTER}",
            f"made the class Half; .*{NO_POLICY}",
        ),
        ("of_mine:Half", f"made Half; .*{NO_DRAFTER}", f"made Half; .*{NO_POLICY}"),
        (
            "of_mine:fails",
            "ZeroDivisionError: .* at .*of_mine.py:[0-9]+",
            "ZeroDivisionError: .*mine",
        ),
    ],
)
def test_what_makes_no_drafter_or_policy_is_told_in_a_sentence(
    name: str,
    of_drafter: str,
    of_credits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "of_mine.py").write_text(
        "def nothing(*given): pass\n"
        "class Half:\n"
        "    vocabulary_size = 1\n"
        "    def __init__(self, *given): pass\n"
        "    def run(self, passes): pass\n"
        "def cls(*given): return Half\n"
        "def fails(*given): return 1 / 0\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"^--drafter {name} made|^--drafter {name}: ") as told:
        make_drafter(EdgeConfig(drafter=name))
    assert re.search(of_drafter, str(told.value))
    with pytest.raises(ConfigError, match=f"^--credits {name} made|^--credits {name}: ") as told:
        credits_of(ServerConfig(credits=name))
    assert re.search(of_credits, str(told.value))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("edge", ["--server", "SERVER", "--draft", "DRAFT", "--prompt", "x", "--drafter"]),
        ("edge", ["--server", "SERVER", "--draft", "DRAFT", "--serve", "--drafter"]),
        ("server", ["--model", "nowhere", "--port", "0", "--credits"]),
        ("bench", ["--quick", "--drafter"]),
        ("bench", ["--quick", "--credits"]),
    ],
)
def test_a_program_says_so_before_it_does_anything_else(
    module: str, options: list[str], tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    known = {"SERVER": tiny_server, "DRAFT": str(tiny_pair[1])}
    command = [sys.executable, "-m", f"runtime.{module}", *(known.get(one, one) for one in options)]
    done = subprocess.run([*command, "os:system"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith(
        f"runtime.{module}: {options[-1]} os:system: to call it raises TypeError"
    )
    assert line.endswith("(docs/extend.md)")


def test_all_examples_are_run() -> None:
    assert PAGE.read_text(encoding="utf-8").count("```python") == len(examples()) == 2
