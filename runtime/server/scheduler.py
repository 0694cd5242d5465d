"""Which sessions take part in the next verification step.

Pure policy: no clock, no model, no sockets; the time is an argument, so every decision can be
tested and simulated. One step holds at most `max_batch` trees and `max_step_nodes` rows, oldest
draft first, and up to `chunk_tokens` prompt tokens that ride along. Pages are reserved when a
session is admitted, for its prompt, its output and one tree, so an admitted session never stalls;
sessions that find no pages wait in order of arrival.
Source: continuous batching after Orca (OSDI 2022), chunked prefill after Sarathi (2308.16369).
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from runtime.server.session import Session


@dataclass(frozen=True)
class Limits:
    """Capacity of the server; nodes and chunks are counted in rows of the forward pass."""

    max_sessions: int
    max_waiting: int
    max_batch: int
    max_step_nodes: int
    max_nodes: int
    chunk_tokens: int
    page_size: int
    n_pages: int


@dataclass(frozen=True)
class Work:
    """A session's part in a step: prefill `chunk` tokens, then verify root and draft if told to."""

    session: Session
    chunk: int
    verify: bool


class Refused(ValueError):
    """A session that cannot be admitted; `busy` tells whether it is worth trying again later."""

    def __init__(self, sentence: str, busy: bool):
        super().__init__(sentence)
        self.busy = busy


class Scheduler:
    """Sessions from `submit` to `remove`; `allocate` and `free` move pages of the KV pool."""

    def __init__(
        self,
        limits: Limits,
        allocate: Callable[[int], list[int]],
        free: Callable[[list[int]], None],
    ):
        self.limits = limits
        self.running: OrderedDict[Hashable, Session] = OrderedDict()
        self.waiting: deque[Session] = deque()
        self._allocate, self._free = allocate, free
        self._free_pages = limits.n_pages

    def pages_for(self, session: Session) -> int:
        """Pages that hold the longest text of the session and one tree of the largest size."""
        tokens = session.limit + self.limits.max_nodes
        return -(-tokens // self.limits.page_size)

    def submit(self, session: Session) -> None:
        """Admit a session, or let it wait for pages. Raises Refused."""
        needed = self.pages_for(session)
        if needed > self.limits.n_pages:
            raise Refused(
                f"the request needs KV for {needed * self.limits.page_size} tokens (prompt, output "
                f"and one tree); this server holds {self.limits.n_pages * self.limits.page_size}",
                busy=False,
            )
        self.waiting.append(session)
        self._admit()
        if len(self.waiting) > self.limits.max_waiting:
            self.waiting.pop()
            raise Refused("the server is full; try again in a few seconds", busy=True)

    def remove(self, session: Session) -> None:
        """Forget a session and free its pages, whatever state it is in."""
        if self.running.pop(session.key, None) is not None:
            self._free(session.pages)
            self._free_pages += len(session.pages)
            session.pages = []
        elif session in self.waiting:
            self.waiting.remove(session)
        self._admit()

    def next_batch(self) -> list[Work]:
        """The next step's work; empty when nothing is ready.

        Trees go first, oldest draft first: they are one step away from giving text. What is left
        of the rows goes to prompts, in order of admission.
        """
        limits, rows = self.limits, self.limits.max_step_nodes
        batch: list[Work] = []
        ready = [s for s in self.running.values() if s.draft is not None]
        for session in sorted((s for s in ready if not s.uncached), key=lambda s: s.ready_s):
            nodes = 1 + len(session.draft or ())
            if len(batch) < limits.max_batch and nodes <= rows:
                batch.append(Work(session, chunk=0, verify=True))
                rows -= nodes
        chunk_rows = limits.chunk_tokens
        for session in (s for s in ready if s.uncached):
            nodes = 1 + len(session.draft or ())
            chunk = min(session.uncached, chunk_rows)
            verify = chunk == session.uncached and len(batch) < limits.max_batch and nodes <= rows
            if chunk > 0:
                batch.append(Work(session, chunk, verify))
                chunk_rows -= chunk
                rows -= nodes if verify else 0
        return batch

    def check(self) -> None:
        """Recount pages; our own bookkeeping must never drift."""
        held = sum(len(session.pages) for session in self.running.values())
        assert held + self._free_pages == self.limits.n_pages, (
            f"{held} pages held and {self._free_pages} free of {self.limits.n_pages}"
        )

    def _admit(self) -> None:
        """Start waiting sessions, in order, while slots and pages last."""
        while self.waiting and len(self.running) < self.limits.max_sessions:
            needed = self.pages_for(self.waiting[0])
            if needed > self._free_pages:
                return
            session = self.waiting.popleft()
            session.pages = self._allocate(needed)
            self._free_pages -= needed
            self.running[session.key] = session
