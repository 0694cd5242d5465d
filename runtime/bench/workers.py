"""Processes of the bench on cores of their own, and clients that keep them busy.

A worker reads one JSON object a line and answers with one; what is in them is its own business.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from runtime.config import ConfigError
from runtime.terminal import fail

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cores:
    """Which cores the server's processes may use, and which the edges'."""

    server: frozenset[int]
    edges: frozenset[int]

    @classmethod
    def split(cls) -> "Cores":
        """Half of this machine's cores each; a single core is shared."""
        cores = sorted(available_cores())
        half = max(1, len(cores) // 2)
        return cls(frozenset(cores[:half]), frozenset(cores[half:] or cores))


def available_cores() -> set[int]:
    """Cores this process may use; where the system cannot tell, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Processes that this thread starts meanwhile stay on these cores, where the system allows."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Worker:
    """A process that answers questions one after the other. Use as a context manager.

    Raises ChildProcessError when it ends instead of answering; its own message is on stderr.
    """

    def __init__(self, module: str, cores: frozenset[int], setup: Mapping[str, Any]):
        self.module = module
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "GOMP_SPINCOUNT": "0"}
        command = [sys.executable, "-m", module]
        with on_cores(cores):
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        self._send(setup)

    def wait_ready(self) -> Any:
        """What the worker says of itself when it has loaded its models."""
        return self._receive()

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The answer to one question."""
        self._send(question)
        return self._receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def _send(self, data: Mapping[str, Any]) -> None:
        try:
            print(json.dumps(data), file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise self._ended() from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None, "it was asked for"
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> ChildProcessError:
        return ChildProcessError(f"{self.module} ended early; its message is above")


def work(program: str, main: Callable[[], None]) -> int:
    """A worker's exit status; what has to be mended is a line on standard error."""
    from runtime.model.config import ModelError  # it brings torch, which the bench itself need not

    try:
        main()
    except (ConfigError, ModelError, ConnectionError) as error:
        return fail(program, error)
    return 0


def ask_all(
    clients: Sequence[Callable[[int], Result]], n_questions: int
) -> tuple[list[Result], float, float]:
    """Each client takes the next question as soon as it has answered its last one.

    Returns the answers in the order they were done, when the first question was asked, and when a
    client first found no question left: until then all were busy.
    """
    waiting = deque(range(n_questions))
    answers: list[Result] = []

    def serve(client: Callable[[int], Result]) -> float:
        while True:
            try:
                number = waiting.popleft()
            except IndexError:
                return time.monotonic()
            answers.append(client(number))

    with ThreadPoolExecutor(len(clients)) as pool:
        start_s = time.monotonic()
        idle_s = min(pool.map(serve, clients))
    return answers, start_s, idle_s
