"""The edge as a command among others: pipes that close, encodings, bytes that are no text."""

import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest


def edge(*options: str) -> list[str]:
    return [sys.executable, "-m", "runtime.edge", "--threads", "1", *options]


@pytest.mark.parametrize(
    "command",
    [
        *("conform 127.0.0.1:1 --tls", "conform 127.0.0.1:1 --user", "conform --draft"),
        *("doctor --server", "doctor --tls", "stack --socket", "stack --socket x --move"),
        *("edge --prompt x --draft", "server --host", "server --model", "demo --prompt"),
    ],
)
def test_an_option_that_is_given_empty_is_a_sentence(command: str) -> None:
    module, *options = command.split()
    program = [sys.executable, "-m", f"runtime.{module}", *options, ""]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    told = f"{options[-1]} is empty; say what it is, or leave it out\n"
    assert done.stderr.splitlines(keepends=True)[-1].endswith(told)


def test_a_pipe_that_closes_ends_it_quietly(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    """As in `| head`, in a terminal that knows ASCII alone."""
    command = edge("--server", tiny_server, "--draft", str(tiny_pair[1]), "--chat")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*command, "--max-tokens", "40"], env=environment, **pipes) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        lines = iter(lambda: process.stdout.readline().decode("ascii"), "")
        text = "".join(takewhile(lambda line: "tokens/s" not in line, lines))
        process.stdout.close()
        errors = process.communicate(b"again\n")[1]
    assert (process.returncode, errors) == (141, b"")
    assert "?" in text, "for what ASCII does not have"
    assert not set(text) & {chr(code) for code in (*range(9), *range(11, 32), 127)}


@pytest.mark.parametrize(
    "name", ["--prompt", "--system", "--stop", "--user", "--server", "--draft"]
)
def test_an_argument_that_is_no_text_is_a_sentence(name: str) -> None:
    command = [argument.encode() for argument in edge("--prompt", "x", name)]
    done = subprocess.run([*command, b"caf\xe9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"runtime.edge: {name} is not valid UTF-8; check its special characters\n"
