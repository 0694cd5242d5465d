"""Every bench can be started: what it uses of the runtime is there, and what pages say of it."""

import contextlib
import importlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from runtime.bench.attempt import attempt

ROOT = Path(__file__).parent.parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("bench", "runtime/bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
OPTIONAL = {"triton", "flashinfer", "matplotlib", "xllamacpp", "pytest_benchmark"}
COMMANDS = [
    name.removesuffix(".__main__")
    for name, path in MODULES.items()
    if re.search(r"option_parser\(\"|\bParser\(", path.read_text(encoding="utf-8"))
    and name != "bench.harness"
]
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m ((?:runtime\.)?bench(?:\.\w+)*)([^`]*)")


@contextlib.contextmanager
def skipped_without_optional() -> Iterator[None]:
    """Skip the test if what is imported meanwhile wants a library that need not be there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [name for name in MODULES if "__" not in name])
def test_a_bench_finds_what_it_imports(name: str) -> None:
    with skipped_without_optional():
        importlib.import_module(name)


@cache
def help_of(command: str, *parts: str) -> str:
    """What it prints of its options; it ends well with that."""
    said = io.StringIO()
    arguments, sys.argv = sys.argv, [command, *parts, "--help"]
    try:
        with (
            skipped_without_optional(),
            contextlib.redirect_stdout(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # that it is imported already
            with pytest.raises(SystemExit) as left:
                runpy.run_module(command, run_name="__main__")
    finally:
        sys.argv = arguments
    assert not left.value.code
    return said.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bench_says_what_its_options_are(command: str) -> None:
    assert help_of(command).startswith(f"usage: python -m {command} ")


def commands_on(page: Path) -> set[tuple[str, str]]:
    """Benches and what follows them: in a line, or between backticks, which may be several."""
    text = page.read_text(encoding="utf-8")
    spans = [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return {found for piece in [*text.splitlines(), *spans] for found in COMMAND.findall(piece)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # that it is imported already
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bench_takes_nothing_that_is_empty(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a script's variable that was never set."""
    for given, told in ((["--json="], "--json is empty"), ([""], "an argument is empty")):
        monkeypatch.setattr(sys, "argv", [command, *given])
        with skipped_without_optional(), pytest.raises(SystemExit) as ended:
            runpy.run_module(command, run_name="__main__")
        assert ended.value.code == 2
        assert f"{told}; say what it is, or leave it out" in capsys.readouterr().err


def test_the_pages_name_benches_and_options_that_there_are() -> None:
    named = [(page.name, *found) for page in PAGES for found in sorted(commands_on(page))]
    assert len({command for _, command, _ in named}) > 8, "the pages are read wrongly"
    for page, command, rest in named:
        assert command in COMMANDS, f"{page} names {command}"
        part = re.match(r" ([a-z]+)(?= |$)", rest)  # as in runtime.bench capacity
        said = help_of(command, *(part.groups() if part else ()))
        for option in re.findall(r"(?<= )--[a-z][a-z-]*", rest):
            assert option in said, f"{page}: {command} has no {option}"


@pytest.mark.parametrize(
    "command",
    [
        *("bench.internet --edges 0", "bench.internet --replicas 0", "bench.internet --hours 0"),
        *("bench.internet --hours nan", "bench.internet --objective-ms 0"),
        *("bench.spill --chats 0", "bench.spill --rounds 0", "bench.spill --tokens 64 -5"),
        *("bench.lookup_replay --per-task 0", "bench.lookup --rounds 0"),
        *("bench.weights --per-task 0", "bench.acceptance --per-task 0"),
        *("bench.acceptance --seeds 0", "bench.agreement --per-task 0"),
        "bench.startup --rounds 0",
    ],
)
def test_a_number_that_measures_nothing_is_refused_at_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *options = command.split()
    monkeypatch.setattr(sys, "argv", [module, *options])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it is imported already
        with pytest.raises(SystemExit) as left:
            runpy.run_module(module, run_name="__main__")
    assert left.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_measured_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise ValueError("take more prompts")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def fault() -> None:
        raise LookupError("ours")

    assert attempt("bench.this", lambda: None) == 0
    assert attempt("bench.this", lambda: 1) == 1
    assert attempt("bench.this", interrupt) == 130
    assert attempt("bench.this", refuse) == 2
    assert attempt("bench.this", lambda: open(tmp_path / "no").close()) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "bench.this: take more prompts"
    assert second == f"bench.this: cannot use {tmp_path / 'no'}: No such file or directory"
    with pytest.raises(LookupError):
        attempt("bench.this", fault)


@pytest.mark.parametrize("at_once", ["", "1"], ids=["at the end", "at once"])
def test_a_bench_whose_output_nobody_reads_ends_as_every_program_does(at_once: str) -> None:
    """Whether what it prints is written at once or when it ends."""
    command = [sys.executable, "-m", "runtime.bench", "prompts"]
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run(
        command,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": at_once},
    )
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (141, b"")


@pytest.mark.parametrize("part", ["table", "capacity", "ablations"])
@pytest.mark.parametrize("name", [".", "none/rows.jsonl"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    part: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["runtime.bench", part, "--json", path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it is imported already
        with pytest.raises(SystemExit) as left:
            runpy.run_module("runtime.bench", run_name="__main__")
    assert left.value.code == 2
    assert f"cannot write {path}; name a file" in capsys.readouterr().err
