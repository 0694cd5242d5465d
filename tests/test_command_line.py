"""The edge as a command among others: pipes that close, encodings, bytes that are no text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def edge(*options: str) -> list[str]:
    return [sys.executable, "-m", "runtime.edge", "--threads", "1", *options]


@pytest.fixture
def asked(tiny_pair: tuple[Path, Path], tiny_server: str) -> list[str]:
    options = ["--server", tiny_server, "--draft", str(tiny_pair[1]), "--temperature", "2"]
    return edge(*options, "--max-tokens", "700", "--prompt", "hello")


def test_a_pipe_that_closes_ends_it_quietly(asked: list[str]) -> None:
    """As in `| head -c 20`."""
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_output_in_ascii_has_marks_for_what_it_cannot_say(asked: list[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*asked, "--no-stats"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "?" in text
    assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), 127)}


@pytest.mark.parametrize(
    "name", ["--prompt", "--system", "--stop", "--user", "--server", "--draft"]
)
def test_an_argument_that_is_no_text_is_a_sentence(name: str) -> None:
    command = [argument.encode() for argument in edge("--prompt", "x", name)]
    done = subprocess.run([*command, b"caf\xe9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"runtime.edge: {name} is not valid UTF-8; check its special characters\n"
