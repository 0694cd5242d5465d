"""The programs, with --stack: what a person starts."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.stack.daemon import _stack, daemon, start

SAMPLING = ("--temperature", "1", "--seed", "5", "--max-tokens", "30")


def edge(server: str, draft: Path, *options: str) -> str:
    command = [sys.executable, "-m", "runtime.edge", "--threads", "1", "--server", server]
    command += ["--draft", str(draft), "--prompt", "Hello there", *SAMPLING, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_and_edge_by_the_stack_write_the_same_text(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    command = [sys.executable, "-m", "runtime.server", "--model", str(tiny_pair[0])]
    command += ["--port", "0", "--http", "", "--threads", "1", "--kv-tokens", "4096"]
    with (
        daemon() as running,
        subprocess.Popen(
            [*command, "--stack", running.path], stdout=subprocess.PIPE, text=True
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "--server" in line)
            address = re.search(r"--server (\S+)", line)
            assert address is not None
            told = edge(address[1], tiny_pair[1], "--stack", running.path)
            assert told == edge(tiny_server, tiny_pair[1])
        finally:
            server.terminate()
            server.communicate()
        assert server.returncode == 0


def ask(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.stack", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_operator_asks_and_moves_a_daemon() -> None:
    with daemon() as running:
        assert ask("--socket", running.path, "--move", "tcp").returncode == 0
        assert '"module": "tcp"' in ask("--socket", running.path, "--status").stdout
        second = ask("--socket", running.path)
        assert second.returncode == 2
        assert f"another specedge-stack has {running.path}" in second.stderr


def test_a_full_daemon_says_so_and_still_answers_its_operator() -> None:
    with daemon("--max-guests", "1") as running:
        guest = _stack.Guest(running.path)
        with pytest.raises(RuntimeError, match="as many guests as it takes are attached"):
            _stack.Guest(running.path)
        assert '"guests": 1' in ask("--socket", running.path, "--status").stdout
        guest.detach()


def test_a_daemon_that_ends_leaves_anothers_socket() -> None:
    with TemporaryDirectory() as folder:
        path = f"{folder}/s"
        first = start(path)
        os.unlink(path)
        second = start(path)
        first.process.terminate()
        assert first.process.wait(30) == 0
        assert second.status()["guests"] == 0
        second.process.terminate()
        assert second.process.wait(30) == 0
        assert not os.listdir(folder)
        for one in (first, second):
            one.process.communicate()


def test_mistakes_are_told_in_a_sentence() -> None:
    for options, told in (
        ((), "--socket is missing"),
        (("--socket", "/nowhere/s", "--status"), "no specedge-stack at /nowhere/s: No such file"),
        (("--socket", "/nowhere/s"), "cannot listen at --socket /nowhere/s: No such file"),
        (("--socket", str(Path(__file__))), f"--socket {__file__} is there already"),
        (("--socket", "s" * 200), "longer than the 107 characters"),
        (("--socket", "s", "--loss", "2"), "--loss is 2.0; the most it takes is 0.5"),
    ):
        done = ask(*options)
        assert done.returncode == 2, done
        assert told in done.stderr
        assert "Traceback" not in done.stderr
