"""Passes of the draft model for requests that run at the same time: those that wait share one.

The event loop's side of the one worker thread in which the drafter runs; which pass a request
wants is the business of `loop.py`.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from runtime.edge.draft.pace import Pace
from runtime.edge.draft.speculation import Pass, Speculation


class Drafts(Protocol):
    """What drafts for all requests of an edge; one thread calls it, a pass at a time.

    One with an attribute `at_once` that is true offers what it has whether or not it is welcome.
    """

    @property
    def vocabulary_size(self) -> int:
        """It can read the ids below."""

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """Run one pass for each; False where there is no room for it.

        For text (`Pass.is_text`) note in `cached` how much of the context has been read; when all
        has been, and for every node of a frontier, which is added to `tree.expanded`, offer the
        likeliest next tokens with `tree.add_children`. What `places` says has to be moved in a
        cache is moved before, and `places` is empty then.
        """

    def finish(self, speculation: Speculation) -> None:
        """The request has ended: free what is kept for it, with `Speculation.forget_cache`."""


class Batcher:
    """Awaitable calls of a drafter. Calls take effect in order."""

    def __init__(self, drafter: Drafts):
        self.pace = Pace()
        self.at_once: bool = getattr(drafter, "at_once", False)  # its passes cost next to nothing
        self._drafter = drafter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draft")
        self._waiting: list[tuple[Pass, asyncio.Future[bool]]] = []
        self._working: asyncio.Task[None] | None = None

    @property
    def vocabulary_size(self) -> int:
        """Rows of the draft model's embedding."""
        return self._drafter.vocabulary_size

    async def run(self, speculation: Speculation, frontier: Sequence[int]) -> bool:
        """Join the next pass. False where the pages do not suffice for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((Pass(speculation, frontier), done))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await done

    def finish(self, speculation: Speculation) -> None:
        """`Drafter.finish`, after the pass that may be running for it."""
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._thread, self._drafter.finish, speculation)

    async def close(self) -> None:
        """Stop the thread when its last pass is done."""
        if self._working is not None:
            await asyncio.wait([self._working])
        self._thread.shutdown()

    async def _work(self) -> None:
        """Run passes as long as someone waits for one."""
        while True:
            await asyncio.sleep(0)  # those whom the last pass woke join the next one
            # a request given up meanwhile has cancelled its future
            batch = [(one, done) for one, done in self._waiting if not done.done()]
            self._waiting = []
            if not batch:
                return
            running = asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, [one for one, _ in batch]
            )
            await asyncio.wait([running])
            error = running.exception()
            for row, (_, done) in enumerate(batch):
                if done.done():
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(running.result()[row])

    def _run(self, passes: Sequence[Pass]) -> list[bool]:
        """One pass of the drafter, which may be anybody's."""
        ran = self._drafter.run(passes)
        if not isinstance(ran, list) or len(ran) != len(passes):
            raise ValueError(
                f"a drafter's run gave {ran!r}; expected {len(passes)} times True or False"
            )
        return ran
