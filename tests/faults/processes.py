"""Real server and edge processes that start in no time: forked from one that has imported all.

Each is killed as `kill -9` kills. Knows command lines and output, nothing of what they mean.
"""

import asyncio
import importlib
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection

# What a process would spend its first seconds on; with them it is forked.
IMPORTS = ["tests.faults.processes", "runtime.server.start", "runtime.server.http", "uvicorn"]
IMPORTS += ["runtime.edge.client", "runtime.edge.chat", "runtime.edge.draft.drafter"]
IMPORTS += ["transformers.models.llama.modeling_llama"]


def _main(module: str, options: list[str], output: Connection) -> None:
    """python -m `module` with these options, its standard output in a pipe."""
    os.dup2(output.fileno(), 1)
    output.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.argv = [module, *options]
    sys.exit(importlib.import_module(f"{module}.__main__").main())


class Child:
    """A process of a module of this project."""

    def __init__(self, module: str, *options: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        reader, writer = context.Pipe(duplex=False)
        arguments = (module, list(options), writer)
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

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()

    def kill(self) -> None:
        """At once, and without a word."""
        os.kill(self._process.pid, signal.SIGKILL)

    async def line_with(self, word: str) -> str:
        """The first line of its output that has this word in it."""

        def read() -> str:
            line = next((line for line in self._output if word in line), None)
            assert line is not None, f"the process ended before it said {word}"
            return line

        return await asyncio.to_thread(read)

    async def end(self) -> tuple[str, int]:
        """Wait for its end: the rest of its output, and its exit status."""
        text = await asyncio.to_thread(self._output.read)
        await asyncio.to_thread(self._process.join)
        status = self._process.exitcode
        self._output.close()
        self._process.close()
        return text, status
