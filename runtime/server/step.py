"""Which rows the next verification step holds: trees of many sessions, and chunks of prompts.

A step holds at most `max_batch` trees of at most `max_step_nodes` rows together and, besides, up to
`chunk_tokens` rows of prompts: neither can crowd out the other, and both bound the step's time.
Pure policy: no clock, no model, and no pages.
Source: chunked prefill after Sarathi (2308.16369).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
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

    def pages_for(self, n_tokens: int) -> int:
        """Pages that n_tokens tokens need."""
        return -(-n_tokens // self.page_size)


@dataclass(frozen=True)
class Work:
    """A session's part in a step: prefill `chunk` tokens, then verify root and draft if told to."""

    session: Session
    chunk: int
    verify: bool


class Line:
    """Sessions whose tree can be verified, oldest draft first, then oldest admission.

    Kept in order, so that a step looks at those that it takes and not at all the others.
    """

    def __init__(self) -> None:
        self._order: list[tuple[float, int, Session]] = []
        self._places: dict[Session, tuple[float, int, Session]] = {}

    def __iter__(self) -> Iterator[Session]:
        return (session for _, _, session in self._order)

    def add(self, session: Session) -> None:
        """Line up; the session's draft stays as it is until it leaves."""
        assert session not in self._places, f"{session.key} is in line twice"
        place = session.ready_s, session.admission, session
        self._places[session] = place
        insort(self._order, place)

    def discard(self, session: Session) -> None:
        """Leave the line, if it is in it."""
        place = self._places.pop(session, None)
        if place is not None:
            del self._order[bisect_left(self._order, place)]


def choose(ready: Iterable[Session], prompts: Sequence[Session], limits: Limits) -> list[Work]:
    """Trees first: they are one step away from giving text. Then prompts.

    `ready` comes oldest draft first, `prompts` oldest admission first. A tree that does not fit is
    verified in a later step, when those before it are done and all others are younger.
    """
    trees, rows = limits.max_batch, limits.max_step_nodes
    batch = []
    for session in ready:
        if not trees or not rows:
            break
        nodes = 1 + len(session.draft or ())
        if nodes <= rows:
            trees, rows = trees - 1, rows - nodes
            batch.append(Work(session, 0, verify=True))
    for session, chunk in _chunks(prompts, limits.chunk_tokens):
        nodes = 1 + len(session.draft or ())
        complete = session.draft is not None and chunk == session.uncached
        verify = complete and trees > 0 and nodes <= rows
        if verify:
            trees, rows = trees - 1, rows - nodes
        if chunk or verify:
            batch.append(Work(session, chunk, verify))
    return batch


def _chunks(prompts: Sequence[Session], rows: int) -> list[tuple[Session, int]]:
    """Tokens of each prompt for one step: half to the oldest, the rest to the shortest first.

    So a long prompt delays short ones little, and no number of short ones stops it. A preempted
    session is a prompt too, whether its edge has sent a draft or not.
    """
    if not prompts:
        return []
    oldest, *others = prompts
    half = min(oldest.uncached, -(-rows // 2))
    rest = rows - half
    chunks = []
    for session in sorted(others, key=lambda session: session.uncached):
        chunks.append((session, min(session.uncached, rest)))
        rest -= chunks[-1][1]
    return [(oldest, min(oldest.uncached, half + rest)), *chunks]
