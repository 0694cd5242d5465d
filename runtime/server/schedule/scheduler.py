"""Which requests run, which wait, and which have the pages for the next verification step.

A request is admitted when its context finds pages and a watermark stays free beside it; later it
takes pages as its trees need them. When none are left, the request admitted last is preempted: it
loses its pages and waits, ahead of all who have never run, to compute its KV anew. Its text is a
function of context and noise, so it stays the same. Whoever runs was thus admitted before whoever
waits, pages move from younger requests to older ones alone, and the oldest always ends.

Pure policy: no clock, no model, no sockets, so every decision can be tested and simulated. Which
rows a step holds is decided in `choose.py`, which pages are shared in `prefix_cache.py`.

Source: continuous batching after Orca (OSDI 2022); preemption by recomputation after PagedAttention
(2309.06180, section 4.5).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from runtime.server.request import Phase, Request
from runtime.server.schedule.choose import Limits, choose, cuts
from runtime.server.schedule.prefix_cache import PrefixCache, extend_keys
from runtime.server.schedule.spill import Spill
from runtime.server.schedule.step import Work

__all__ = ["Limits", "Refused", "Scheduler", "Work"]


class Refused(ValueError):
    """A request that cannot be admitted; `busy` tells whether it is worth trying again later."""

    def __init__(self, sentence: str, busy: bool):
        super().__init__(sentence)
        self.busy = busy


class Scheduler:
    """Requests from `submit` to `remove`; `allocate` and `free` move pages of the KV pool.

    spill   keeps the pages that the pool gives up; None keeps none

    Its two containers say who is before whom, and nothing else about a request: one line of all of
    them, and of those who wait for a step. Who runs and is not in the second waits for its edge, or
    is in the running step.
    """

    def __init__(
        self,
        limits: Limits,
        allocate: Callable[[int], list[int]],
        free: Callable[[list[int]], None],
        spill: Spill[Any] | None = None,
    ):
        self.limits = limits
        self.spill = spill or Spill[Any](memory_pages=0)
        # Who runs, oldest admission first, then who waits for pages: the preempted, oldest first,
        # then the others as they came. So who is preempted is passed by the border, and stays.
        self._line: list[Request] = []
        self._n_running = 0
        # for a step: to be verified if `ready`, else to be prefilled or to find pages for a draft
        self._due: dict[Request, None] = {}
        self.cache = PrefixCache(limits.n_pages, allocate, free, self.spill.evicted)
        self.sought_tokens = 0  # tokens before the root, of every admission
        self.hit_tokens = 0  # of these, found in the cache
        self.preemptions = 0
        self._admissions = 0
        self._steps: deque[Sequence[Work]] = deque()  # that the model has, or has before it

    @property
    def running(self) -> Sequence[Request]:
        """Who is admitted, oldest admission first."""
        return self._line[: self._n_running]

    @property
    def waiting(self) -> Sequence[Request]:
        """Who waits for pages: the preempted first, oldest first."""
        return self._line[self._n_running :]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def pages_for(self, request: Request) -> int:
        """Pages that hold the longest text of the request and one tree of the largest size."""
        return self.limits.pages_for(request.limit + self.limits.max_nodes)

    def has_room(self, request: Request, nodes: int) -> bool:
        """Whether a tree of so many nodes would find its pages without taking them from others."""
        needed = self.limits.pages_for(len(request.context) + nodes)
        return needed - len(request.pages) <= self.cache.room()

    def reading(self, request: Request) -> None:
        """More of its prompt has come: hashed at once, so that a long one is not all at its end."""
        extend_keys(request.page_keys, request.sharers, request.context, self.limits.page_size)

    def submit(self, request: Request) -> None:
        """Admit a request, or let it wait for pages. Raises Refused."""
        needed = self.pages_for(request)
        if needed > self.limits.n_pages:
            raise Refused(
                f"the request needs KV for {needed * self.limits.page_size} tokens (prompt, output "
                f"and one tree); this server holds {self.limits.n_pages * self.limits.page_size}",
                busy=False,
            )
        self._line.append(request)
        self._admit()
        if len(self._line) - self._n_running > self.limits.max_waiting:
            self._line.pop()
            raise Refused("the server is full; try again in a few seconds", busy=True)

    def remove(self, request: Request) -> None:
        """Forget a request and free its pages, whatever phase it is in; it is ended.

        The model may be writing to the pages of a request in a step: they stay until the last such
        step is over.
        """
        request.end()
        if request.admitted:
            self._n_running -= 1
            self._leave_step_line(request)
            if not request.in_steps:
                self.cache.release(request.lose_pages())
        if request in self._line:  # else its prompt has not been read
            self._line.remove(request)
        self._admit()

    def drafted(self, request: Request) -> None:
        """A draft has come, or one of no nodes has been put for it, or its masks have."""
        if request.admitted:
            self._due[request] = None

    @property
    def has_news(self) -> bool:
        """Whether somebody may be ready who was not when a step was chosen last."""
        return any(not (request.ready or request.in_steps) for request in self._due)

    def next_batch(self) -> Sequence[Work]:
        """The next step's work, every request with the pages for it; empty when nothing is ready.

        No step is running, and the verdicts of the one before have been applied.
        """
        assert not self._steps, "a step is running"
        # oldest first; an older request may preempt a younger one before its turn comes
        for request in self._unready():
            if request in self._due and self._supply(request):
                self._line_up(request)
        return self._choose(())

    def next_ahead(self, stays_plain: Callable[[Request], bool]) -> Sequence[Work]:
        """The work of the step after the running one, as far as it is known before that one ends.

        Prompts go on where the running step leaves them, and so does plain decoding where it
        `stays_plain`. It takes nothing from anybody: if somebody lacks pages that others hold, it
        is empty, and who gives them up is decided in `next_batch` when no step is running.
        """
        (running,) = self._steps
        unready = self._unready()
        short = [r for r in unready if self._pages_missing(r) > 0]
        # where a tree is verified it is not known where the text goes on
        single = [work.request for work in running if work.verify and not work.nodes]
        following = [request for request in single if self._goes_on(request)]
        following = [request for request in following if stays_plain(request)]
        wanted = [(request, self._pages_missing(request)) for request in short]
        wanted += [(request, self._pages_to_follow(request)) for request in following]
        if sum(count for _, count in wanted) > self.cache.room():
            return ()
        for request, count in wanted:
            request.take_pages(self.cache.lend(count))
        for request in unready:
            self._line_up(request)
        return self._choose(following)

    def take_back(self) -> None:
        """The step that was chosen last does not take place; its requests wait for a step again."""
        for work in self._steps.pop():
            work.request.withdraw(work.chunk, work.verify)
            if not work.follows:
                self._line_up(work.request)

    def step_ended(self) -> None:
        """The running step is over; its verdicts are applied next, each with `verified`."""
        for work in self._steps.popleft():
            request = work.request
            request.leave_step()
            if request.ended and not request.in_steps:
                self.cache.release(request.lose_pages())

    def verified(self, request: Request) -> None:
        """A verdict has been applied: others may find the full pages of the text that is cached.

        Only what a verdict has been drawn from is shared, so that a fault in the numbers of one
        request, which ends it, cannot spread to others through the cache.
        """
        size = self.limits.page_size
        full = request.cached // size
        if full == request.published:
            return
        extend_keys(request.page_keys, request.sharers, request.context, size)
        for index in range(request.published, full):
            self.cache.publish(request.page_keys[index], request.pages[index])
        request.published = full

    def check(self) -> None:
        """Recount pages and lines; our own bookkeeping must never drift."""
        stepping = {work.request for step in self._steps for work in step}
        running = self.running
        holders = [*running, *(r for r in stepping if r not in running)]
        self.cache.check(page for request in holders for page in request.pages)
        self.spill.check()
        for request in holders:
            held = len(request.pages) * self.limits.page_size
            assert request.cached <= held, f"{request.cached} tokens cached in pages of {held}"
        assert all(request.admitted for request in running), "who runs is not admitted"
        for request in self.waiting:
            assert request.phase is Phase.NEEDS_PAGES, f"{request.key} waits for {request.phase}"
            assert not request.pages, f"{request.key} waits for pages and has some"
        ages = [request.admission for request in running]
        assert ages == sorted(ages), f"admissions {ages} are not in order"
        due = {r for r in running if r.phase in (Phase.PREFILLING, Phase.QUEUED)}
        lined_up = {r for r in self._due if r.phase is not Phase.IN_STEP}
        assert lined_up == due, "other requests wait for a step than should"
        ready = [request for request in self._line if request.ready]
        assert self._due.keys() >= set(ready), "a request is ready, and waits for no step"
        assert not any(request.verifying for request in ready), "who is verified is ready again"
        supplied = all(not r.uncached and self._pages_missing(r) <= 0 for r in ready)
        assert supplied, "who is ready lacks pages or text in them"

    def _choose(self, following: Sequence[Request]) -> Sequence[Work]:
        """Put a step together and let its requests enter it."""
        self._admit()
        prompts = [r for r in self._unready() if r.uncached and self._pages_missing(r) <= 0]
        ready, limits = self._ready(), self.limits
        for request, nodes in cuts(ready, limits.max_batch, limits.max_step_nodes):
            request.cut(nodes)
        step = choose(ready, prompts, limits, following)
        for work in step:
            request = work.request
            if work.follows:
                request.follow()
            else:
                request.enter_step(work.chunk, work.verify)
                self._leave_step_line(request)
                if not work.verify:
                    self._line_up(request)
        if step:
            self._steps.append(step)
        return step

    def _goes_on(self, request: Request) -> bool:
        """Whether it decodes plainly and the verdict that is owed cannot be its last by length."""
        if request.needs_text or request.ended:
            return False
        return request.goes_on and request.remaining > 1

    def _pages_to_follow(self, request: Request) -> int:
        """Pages that it lacks for one token after the one that is being drawn."""
        return max(self.limits.pages_for(len(request.context) + 1) - len(request.pages), 0)

    def _ready(self) -> list[Request]:
        """Whose tree can be verified, oldest draft first, then oldest admission."""
        ready = [request for request in self._due if request.ready]
        return sorted(ready, key=attrgetter("ready_s", "admission"))

    def _unready(self) -> list[Request]:
        """Who has to be prefilled, or to find pages for a draft, oldest admission first."""
        unready = [request for request in self._due if not request.ready]
        return sorted(unready, key=attrgetter("admission"))

    def _admit(self) -> None:
        """Start waiting requests, in order, while places and pages last."""
        while self._n_running < min(len(self._line), self.limits.max_requests):
            request = self._next_waiting()
            if request is None or not self._start(request):
                return
            self._line.remove(request)
            self._line.insert(self._n_running, request)
            self._n_running += 1

    def _next_waiting(self) -> Request | None:
        """The first preempted request, else the first one of the user who runs the fewest.

        None where all who wait run as many as one user may.
        """
        first = self._line[self._n_running]
        if first.preemptions:
            return first
        running = Counter(request.user for request in self.running)
        most = self.limits.max_user_running
        may = [request for request in self.waiting if running[request.user] < most]
        return min(may, key=lambda request: running[request.user], default=None)

    def _start(self, request: Request) -> bool:
        """Admit a request with pages for its context and draft, if they are there.

        A watermark stays free for the trees of the others. It doubles with each preemption, so a
        request is preempted a number of times that is logarithmic in the size of the pool.
        """
        size = self.limits.page_size
        extend_keys(request.page_keys, request.sharers, request.context, size)
        # the root is always computed, because a step must have its logits
        keys = request.page_keys[: request.root // size]
        shared = self.cache.find(keys)
        fresh = self._pages_with_draft(request) - len(shared)
        watermark = self.limits.pages_for(1 + self.limits.max_nodes) << request.preemptions
        if fresh + (watermark if self._n_running else 0) > self.cache.room(beside=shared):
            return False
        self.cache.hold(shared)
        kept = self.spill.find(keys[len(shared) :])
        lent = self.cache.lend(fresh)
        for key, copy, page in zip(keys[len(shared) :], kept, lent, strict=False):
            self.spill.put_back(copy, page)
            self.cache.publish(key, page)
        found = len(shared) + len(kept)
        self._admissions += 1
        request.admit(shared + lent, found * size, self._admissions)
        request.published = found
        self.sought_tokens += request.root
        self.hit_tokens += request.cached
        self._line_up(request)
        return True

    def _line_up(self, request: Request) -> None:
        """Let a running request that has the pages for its draft wait for a step, if it has to."""
        uncached = request.uncached
        request.ready = request.is_verifiable and not uncached
        if uncached or request.ready:
            self._due[request] = None
        else:
            self._due.pop(request, None)

    def _leave_step_line(self, request: Request) -> None:
        self._due.pop(request, None)
        request.ready = False

    def _supply(self, request: Request) -> bool:
        """Give a running request the pages for its draft, from younger requests if need be.

        False if older ones hold too many: then it sits out.
        """
        missing = self._pages_missing(request)
        if missing <= 0:
            return True
        while missing > self.cache.room():
            youngest = self._line[self._n_running - 1]
            if youngest is request:
                return False
            self._preempt_youngest()
        request.take_pages(self.cache.lend(missing))
        return True

    def _preempt_youngest(self) -> None:
        """Take all pages of the request admitted last; its context and its draft stay."""
        self._n_running -= 1
        request = self._line[self._n_running]
        self._leave_step_line(request)
        self.cache.release(request.preempt())
        self.preemptions += 1

    def _pages_with_draft(self, request: Request) -> int:
        return self.limits.pages_for(len(request.context) + request.nodes)

    def _pages_missing(self, request: Request) -> int:
        return self._pages_with_draft(request) - len(request.pages)
