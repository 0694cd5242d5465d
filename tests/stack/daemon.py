"""A daemon for a test, and what it says of itself."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

_stack = pytest.importorskip("runtime.stack._stack", reason="the stack is for Linux alone")
PROGRAM = Path(_stack.__file__).with_name("specedge-stack")
MODULES = ("shm", "unix", "tcp", "emulated")
SHAPE = ("--delay-ms", "1")  # of the emulated link


@dataclass
class Daemon:
    path: str
    process: subprocess.Popen[str]

    def status(self) -> dict[str, Any]:
        return json.loads(_stack.status(self.path))

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def start(
    path: str, *options: str, program: Path = PROGRAM, environment: Mapping[str, str] = {}
) -> Daemon:
    """Returns once guests can attach."""
    command = [str(program), "--socket", path, *options]
    env = {**os.environ, **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert path in process.stdout.readline()
    return Daemon(path, process)


@contextmanager
def daemon(
    *options: str, program: Path = PROGRAM, environment: Mapping[str, str] = {}
) -> Iterator[Daemon]:
    """It must live to the end, end well, and leave no file behind."""
    with TemporaryDirectory() as folder:  # its name is short, as a Unix socket's has to be
        running = start(f"{folder}/s", *options, program=program, environment=environment)
        try:
            yield running
            running.process.terminate()
            assert running.process.wait(30) == 0
            assert not os.listdir(folder)
        finally:
            running.process.kill()
            running.process.communicate()
