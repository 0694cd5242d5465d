"""Real server and edge processes that start in no time: forked from one that has imported all.

Knows command lines, output and signals, nothing of what they mean.
"""

import asyncio
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

# What a process would spend its first seconds on; with them it is forked.
IMPORTS = ["tests.processes", "runtime.server.start", "runtime.server.http", "uvicorn"]
IMPORTS += ["runtime.edge.client", "runtime.edge.chat", "runtime.edge.draft.drafter"]
IMPORTS += ["runtime.model.open", "transformers.tokenization_utils_tokenizers"]


def _main(
    module: str, options: list[str], output: Connection, errors: Path | None, descriptors: int
) -> None:
    """python -m `module` with these options, its standard output in a pipe."""
    os.dup2(output.fileno(), 1)
    output.close()
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.argv = [module, *options]
    sys.exit(importlib.import_module(f"{module}.__main__").main())


class Child:
    """A process of a module of this project.

    What it says of errors goes to the file `errors`, if one is given; it may have as many
    `descriptors`, if a number is given.
    """

    def __init__(
        self, module: str, *options: str, errors: Path | None = None, descriptors: int = 0
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        reader, writer = context.Pipe(duplex=False)
        arguments = (module, list(options), writer, errors, descriptors)
        # a daemon, so that none outlives a test that fails
        self._process = context.Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        writer.close()
        self._output = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()

    @property
    def pid(self) -> int:
        """The number by which it can be signalled."""
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit status; None if it has not ended in that time."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """At once, and without a word; nothing if it has ended."""
        self._process.kill()

    def next_line(self, word: str) -> str:
        """The next line of its output that has this word in it."""
        line = next((line for line in self._output if word in line), None)
        assert line is not None, f"the process ended before it said {word}"
        return line

    async def line_with(self, word: str) -> str:
        """`next_line`, while other tasks go on."""
        return await asyncio.to_thread(self.next_line, word)

    async def end(self) -> tuple[str, int]:
        """Wait for its end: the rest of its output, and its exit status."""
        text = await asyncio.to_thread(self._output.read)
        await asyncio.to_thread(self._process.join)
        status = self._process.exitcode
        self.close()
        return text, status

    def close(self) -> None:
        """Of one that has ended."""
        self._output.close()
        self._process.close()


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """A server with these options; gives its host:port, and stops it with SIGTERM."""
    server = Child("runtime.server", *options)
    try:
        yield server.next_line("--server ").split("--server ")[1].split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        server.close()
