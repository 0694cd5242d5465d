"""The load programs and a daemon for them: started, asked, ended."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "load"
STACK = ROOT / "csrc" / "stack"
GUEST = ("guest.cpp", "events.cpp", "messages.cpp", "region.cpp")
BUILDS = ROOT / "build" / "stack"
FLAGS = ("-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror")
# At a given rate; 0: each connection asks again as soon as it was answered.
ANY_RATE = 0.0

Figures = dict[str, float]


@cache
def program() -> Path:
    """The compiled load; one build for each state of its sources, kept beside other builds.

    Raises ValueError without a compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise ValueError("bench.stack needs a C++20 compiler: install one, or name it in CXX")
    files = sorted([*SOURCES.glob("*"), *STACK.glob("*")])
    content = b"".join(path.read_bytes() for path in files) + " ".join(FLAGS).encode()
    target = BUILDS / hashlib.sha256(content).hexdigest()[:16]
    if not target.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        sources = [*SOURCES.glob("*.cpp"), *(STACK / name for name in GUEST)]
        with tempfile.TemporaryDirectory(dir=BUILDS) as folder:
            fresh = Path(folder) / "load"
            command = [compiler, *FLAGS, f"-I{STACK}", *map(str, sources), "-o", str(fresh)]
            built = subprocess.run(command, capture_output=True, text=True, check=False)
            if built.returncode:
                raise ValueError(f"{compiler} cannot compile the load:\n{built.stderr}")
            fresh.replace(target)  # whole or not at all, whoever else builds it
    return target


def ask(*words: object) -> Figures:
    """What a program has printed once it has ended. Raises ValueError if it failed."""
    return answer(begin(*words))


def begin(*words: object) -> "subprocess.Popen[str]":
    """A program that runs; it ends by itself, or when its input ends."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([program(), *map(str, words)], text=True, **pipes)


def answer(process: "subprocess.Popen[str]") -> Figures:
    """As `ask` of one that was begun."""
    told, complaint = process.communicate()
    if process.returncode:
        raise ValueError(complaint.strip() or f"the load ended with {process.returncode}")
    return {name: float(value) for name, value in map(str.split, told.splitlines())}


def first_figure(process: "subprocess.Popen[str]") -> float:
    """That a program says before it goes on."""
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if not line:
        raise ValueError(answer(process) or "the load says nothing")
    return float(line[1])


@dataclass(frozen=True)
class Daemon:
    """A specedge-stack that runs."""

    path: str
    process: "subprocess.Popen[str]"

    def cpu_s(self) -> float:
        """Processor time so far."""
        return float(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) * 1e-9

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        from runtime.stack import _stack

        told: dict[str, Any] = json.loads(_stack.status(self.path))
        return told


@contextmanager
def daemon(*options: str) -> Iterator[Daemon]:
    """Raises ValueError where the stack is not installed."""
    try:
        from runtime.stack import _stack
    except ImportError as error:
        raise ValueError(
            f"bench.stack needs the stack, which is for Linux alone: {error}"
        ) from None
    executable = Path(_stack.__file__).with_name("specedge-stack")
    with tempfile.TemporaryDirectory() as folder:  # its name is short, as a socket's has to be
        path = f"{folder}/s"
        command = [str(executable), "--socket", path, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise ValueError("the daemon did not start")
                yield Daemon(path, process)
                if process.poll() is not None:
                    raise ValueError(f"the daemon ended with {process.returncode}")
            finally:
                process.terminate()


@dataclass(frozen=True)
class Server:
    """A program that answers, and where."""

    port: int
    process: "subprocess.Popen[str]"

    def cpu_s(self) -> float:
        """Processor time so far."""
        return float(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) * 1e-9


@contextmanager
def server(*words: object) -> Iterator[Server]:
    """A program of servers.cpp, until the block ends."""
    process = begin(*words)
    try:
        yield Server(int(first_figure(process)), process)
    finally:
        process.communicate()
