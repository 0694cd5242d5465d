"""Which sessions run, which wait, and which have the pages for the next verification step.

A session is admitted when its context finds pages and a watermark stays free beside it; later it
takes pages as its trees need them. When none are left, the session admitted last is preempted: it
loses its pages and waits, ahead of all who have never run, to compute its KV anew. Its text is a
function of context and noise, so it stays the same. Whoever runs was thus admitted before whoever
waits, pages move from younger sessions to older ones alone, and the oldest always ends.

Pure policy: no clock, no model, no sockets, so every decision can be tested and simulated. Which
rows a step holds is decided in `step.py`, which pages are shared in `prefix_cache.py`.

Source: continuous batching after Orca (OSDI 2022); preemption by recomputation after PagedAttention
(2309.06180, section 4.5).
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from itertools import chain

from runtime.server.prefix_cache import PrefixCache, extend_keys
from runtime.server.session import Session
from runtime.server.step import Limits, Line, Work, choose

__all__ = ["Limits", "Refused", "Scheduler", "Work"]


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
        self.running: OrderedDict[Hashable, Session] = OrderedDict()  # oldest admission first
        self.waiting: deque[Session] = deque()  # the preempted first, oldest admission first
        self.cache = PrefixCache(limits.n_pages, allocate, free)
        self.sought_tokens = 0  # tokens before the root, of every admission
        self.hit_tokens = 0  # of these, found in the cache
        self.preemptions = 0
        self._admissions = 0
        # What the running sessions wait for. Who is in none of the three waits for its edge, and
        # costs a step nothing.
        self._drafted: set[Session] = set()  # for pages for a draft that has come
        self._prompts: dict[Session, None] = {}  # to be prefilled, oldest admission first
        self._ready = Line()  # to be verified
        self._step: list[Work] = []

    def pages_for(self, session: Session) -> int:
        """Pages that hold the longest text of the session and one tree of the largest size."""
        return self.limits.pages_for(session.limit + self.limits.max_nodes)

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
        """Forget a session and free its pages, whatever state it is in.

        The model may be writing to the pages of a session in the running step: they stay until
        the step is over.
        """
        if self._is_running(session):
            self._stop(session)
            if all(work.session is not session for work in self._step):
                self._release(session)
        elif session in self.waiting:
            self.waiting.remove(session)
        self._admit()

    def next_batch(self) -> list[Work]:
        """The next step's work, every session with the pages for it; empty when nothing is ready.

        Calling it ends the last step: the outcomes of its batch have been applied.
        """
        self._settle()
        # oldest first; an older session may preempt a younger one before its turn comes
        for session in sorted(self._drafted, key=lambda session: session.admission):
            if session in self._drafted and self._supply(session):
                self._drafted.remove(session)
                self._line_up(session)
        self._admit()
        prompts = [session for session in self._prompts if session not in self._drafted]
        self._step = choose(self._ready, prompts, self.limits)
        for work in self._step:
            self._ready.discard(work.session)
        return self._step

    def drafted(self, session: Session) -> None:
        """A draft has come for a session that was verified in an earlier step than the last."""
        if self._is_running(session):
            self._drafted.add(session)

    def check(self) -> None:
        """Recount pages; our own bookkeeping must never drift."""
        sessions = [*self.running.values()]
        sessions += [w.session for w in self._step if not self._is_running(w.session)]
        self.cache.check(page for session in sessions for page in session.pages)
        for session in sessions:
            held = len(session.pages) * self.limits.page_size
            assert session.cached <= held, f"{session.cached} tokens cached in pages of {held}"
        assert not any(session.pages for session in self.waiting), "a waiting session holds pages"
        self._check_lines()

    def _check_lines(self) -> None:
        """Sort everybody anew; those in the step are sorted when it is over."""
        lines = self._drafted, self._prompts, self._ready
        assert all(map(self._is_running, chain(*lines))), "who does not run waits for a step"
        stepping = {work.session for work in self._step}
        others = [s for s in self.running.values() if s not in stepping]
        prompts = [s for s in others if s.uncached]
        assert prompts == [s for s in self._prompts if s not in stepping], "prompts differ"
        ready = [s for s in others if s.draft is not None and s not in self._drafted]
        ready = sorted((s for s in ready if not s.uncached), key=lambda s: s.ready_s)
        assert ready == list(self._ready), "the line differs from those who should be in it"
        supplied = all(self._pages_missing(session) <= 0 for session in ready)
        assert supplied, "who is in line lacks pages"

    def _admit(self) -> None:
        """Start waiting sessions, in order, while slots and pages last."""
        while self.waiting and len(self.running) < self.limits.max_sessions:
            session = self._next_waiting()
            if not self._start(session):
                return
            self.waiting.remove(session)

    def _next_waiting(self) -> Session:
        """The first preempted session, else the first one of the tenant that runs the fewest."""
        if self.waiting[0].preemptions:
            return self.waiting[0]
        running = Counter(session.tenant for session in self.running.values())
        return min(self.waiting, key=lambda session: running[session.tenant])

    def _start(self, session: Session) -> bool:
        """Admit a session with pages for its context and draft, if they are there.

        A watermark stays free for the trees of the others. It doubles with each preemption, so a
        session is preempted a number of times that is logarithmic in the size of the pool.
        """
        size = self.limits.page_size
        extend_keys(session.page_keys, session.tenant, session.context, size)
        # the root is always computed, because a step must have its logits
        shared = self.cache.find(session.page_keys[: session.root // size])
        fresh = self._pages_with_draft(session) - len(shared)
        watermark = self.limits.pages_for(1 + self.limits.max_nodes) << session.preemptions
        if fresh + (watermark if self.running else 0) > self.cache.room(beside=shared):
            return False
        self.cache.hold(shared)
        session.pages = shared + self.cache.lend(fresh)
        session.published, session.cached = len(shared), len(shared) * size
        self.sought_tokens += session.root
        self.hit_tokens += session.cached
        self._admissions += 1
        session.admission = self._admissions
        self.running[session.key] = session
        self._line_up(session)
        return True

    def _line_up(self, session: Session) -> None:
        """Let a running session that has the pages for its draft wait for a step."""
        if session.uncached:
            self._prompts[session] = None
        elif session.draft is not None:
            self._ready.add(session)

    def _stop(self, session: Session) -> None:
        del self.running[session.key]
        self._drafted.discard(session)
        self._prompts.pop(session, None)
        self._ready.discard(session)

    def _supply(self, session: Session) -> bool:
        """Give a running session the pages for its draft, from younger sessions if need be.

        False if older ones hold too many: then it sits out.
        """
        missing = self._pages_missing(session)
        if missing <= 0:
            return True
        while missing > self.cache.room():
            youngest = next(reversed(self.running.values()))
            if youngest is session:
                return False
            self._preempt(youngest)
        session.pages += self.cache.lend(missing)
        return True

    def _preempt(self, session: Session) -> None:
        """Take all pages of the session admitted last; its context and its draft stay."""
        self._stop(session)
        self._release(session)
        session.cached = 0
        session.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(session)

    def _settle(self) -> None:
        """End the last step: share what it verified, free the pages of the sessions that left.

        Only what a verdict has been drawn from is shared, so that a fault in the numbers of one
        session, which ends it, cannot spread to others through the cache.
        """
        for work in self._step:
            session, stays = work.session, self._is_running(work.session)
            if work.verify and (stays or session.finish):
                self._publish(session)
            if not stays:
                self._release(session)
                continue
            if not session.uncached:
                self._prompts.pop(session, None)
            if session.draft is not None:
                self._drafted.add(session)
        self._step = []

    def _publish(self, session: Session) -> None:
        """Let others find the full pages of the text that is cached."""
        size = self.limits.page_size
        extend_keys(session.page_keys, session.tenant, session.context, size)
        full = session.cached // size
        for index in range(session.published, full):
            self.cache.publish(session.page_keys[index], session.pages[index])
        session.published = full

    def _release(self, session: Session) -> None:
        self.cache.release(session.pages)
        session.pages = []

    def _pages_with_draft(self, session: Session) -> int:
        return self.limits.pages_for(len(session.context) + len(session.draft or ()))

    def _pages_missing(self, session: Session) -> int:
        return self._pages_with_draft(session) - len(session.pages)

    def _is_running(self, session: Session) -> bool:
        return self.running.get(session.key) is session
