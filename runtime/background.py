"""An event loop in a thread of its own: it hears the network while a program does else."""

import asyncio
import sys
from collections.abc import Coroutine
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

Result = TypeVar("Result")

# Not the program's kind of loop: uvloop's connections are no asyncio.Transport, and end otherwise.
if sys.platform == "win32":
    _PlainLoop = asyncio.ProactorEventLoop
else:
    _PlainLoop = asyncio.SelectorEventLoop


class Background:
    """Runs coroutines for any thread; its own thread begins with the first of them."""

    def __init__(self) -> None:
        self._beginning = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begin it on the loop; the future may be waited for, or cancelled, in any thread."""
        with self._beginning:
            if self._loop is None:
                self._loop = _PlainLoop()
                # a daemon: a program that forgets to close its edge ends all the same
                self._thread = Thread(target=self._loop.run_forever, name="background", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """Cancel what is still running, wait until it has ended, and end the thread."""
        with self._beginning:
            if self._loop is None or self._thread is None:
                return
            asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None


async def _end_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
