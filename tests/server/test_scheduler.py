"""The scheduler: capacity is never exceeded, nobody starves, no page is lost."""

import random
from collections.abc import Iterator

import pytest

from runtime.server.scheduler import Limits, Refused, Scheduler, Work
from runtime.server.session import Session
from runtime.tree import Tree
from runtime.wire.messages import Open

LIMITS = Limits(
    max_sessions=4,
    max_waiting=3,
    max_batch=3,
    max_step_nodes=20,
    max_nodes=12,
    chunk_tokens=8,
    page_size=4,
    n_pages=40,
)


class Pool:
    """Pages with an owner each; hands none out twice."""

    def __init__(self, n_pages: int):
        self.free_pages = list(range(n_pages))

    def allocate(self, count: int) -> list[int]:
        taken, self.free_pages = self.free_pages[:count], self.free_pages[count:]
        assert len(taken) == count, "the scheduler asked for pages that it knows are not there"
        return taken

    def free(self, pages: list[int]) -> None:
        assert not set(pages) & set(self.free_pages), "a page was freed twice"
        self.free_pages += pages


@pytest.fixture
def pool() -> Pool:
    return Pool(LIMITS.n_pages)


@pytest.fixture
def scheduler(pool: Pool) -> Iterator[Scheduler]:
    scheduler = Scheduler(LIMITS, pool.allocate, pool.free)
    yield scheduler
    scheduler.check()


def session(key: int, prompt: int = 3, output: int = 5, ready_s: float = 0.0) -> Session:
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, output, prompt, ())
    return Session(key, params, limit=prompt + output, context=[0] * prompt, ready_s=ready_s)


def chain(nodes: int) -> Tree:
    return Tree(tuple(range(nodes)), tuple(range(nodes)))


def keys(batch: list[Work]) -> list[object]:
    return [work.session.key for work in batch]


def test_a_prompt_is_prefilled_in_chunks_and_verified_with_the_last(scheduler: Scheduler) -> None:
    state = session(1, prompt=20)
    scheduler.submit(state)
    seen = []
    while state.draft is not None:
        (work,) = scheduler.next_batch()
        seen.append((work.chunk, work.verify))
        state.cached += work.chunk
        if work.verify:
            state.advance([], bonus=0)
    assert seen == [(8, False), (8, False), (3, True)]
    assert scheduler.next_batch() == []


def test_oldest_drafts_first_and_prompts_in_what_is_left(scheduler: Scheduler) -> None:
    for key, ready_s in ((1, 3.0), (2, 1.0), (3, 2.0)):
        state = session(key, prompt=1, ready_s=ready_s)
        scheduler.submit(state)
        state.draft = chain(8)
    scheduler.submit(session(4, prompt=30))
    batch = scheduler.next_batch()
    assert keys(batch) == [2, 3, 4], "9 + 9 rows fit, the third tree does not"
    assert batch[-1] == Work(batch[-1].session, chunk=8, verify=False)


def test_the_largest_tree_is_not_starved_by_small_ones(scheduler: Scheduler) -> None:
    large = session(1, prompt=1, ready_s=0.0)
    scheduler.submit(large)
    large.draft = chain(LIMITS.max_nodes)
    for key in (2, 3):
        state = session(key, prompt=1, ready_s=1.0)
        scheduler.submit(state)
        state.draft = chain(7)
    assert keys(scheduler.next_batch()) == [1]


def test_waiting_sessions_start_in_order_when_pages_come_back(
    scheduler: Scheduler, pool: Pool
) -> None:
    """Each needs 20 tokens + 12 nodes = 8 pages: five would fit, but only four may run."""
    states = [session(key, prompt=10, output=10) for key in range(6)]
    for state in states:
        scheduler.submit(state)
    assert list(scheduler.running) == [0, 1, 2, 3]
    scheduler.remove(states[4])
    scheduler.remove(states[1])
    assert list(scheduler.running) == [0, 2, 3, 5]
    for state in states:
        scheduler.remove(state)
    assert sorted(pool.free_pages) == list(range(LIMITS.n_pages))


def test_what_cannot_be_admitted_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(Refused, match="needs KV for 212 tokens") as refused:
        scheduler.submit(session(1, prompt=100, output=100))
    assert not refused.value.busy
    for key in range(LIMITS.max_sessions + LIMITS.max_waiting):
        scheduler.submit(session(key, prompt=10, output=10))
    with pytest.raises(Refused, match="try again") as refused:
        scheduler.submit(session(99))
    assert refused.value.busy


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic(scheduler: Scheduler, pool: Pool, seed: int) -> None:
    """Every submitted session ends; every step keeps every limit; all pages come back."""
    rng = random.Random(seed)
    left = [session(key, rng.randint(1, 30), rng.randint(1, 20)) for key in range(40)]
    ended, now_s, hopeless = 0, 0.0, 0
    while left or scheduler.running or scheduler.waiting:
        now_s += 1
        if left and rng.random() < 0.5:
            try:
                scheduler.submit(left[-1])
                left.pop()
            except Refused as refused:
                hopeless += not refused.busy
        for state in scheduler.running.values():
            if state.draft is None and rng.random() < 0.7:
                state.draft = chain(rng.randint(0, min(state.remaining - 1, LIMITS.max_nodes)))
                state.ready_s = now_s
        batch = scheduler.next_batch()
        trees = [work.session for work in batch if work.verify]
        assert len(trees) <= LIMITS.max_batch
        assert sum(1 + len(state.draft or ()) for state in trees) <= LIMITS.max_step_nodes
        assert sum(work.chunk for work in batch) <= LIMITS.chunk_tokens
        for work in batch:
            work.session.cached += work.chunk
            if work.verify:
                assert work.session.uncached == 0, "a tree is verified before its prompt is there"
                drafted = work.session.draft or Tree()
                path = rng.randint(0, len(drafted))
                work.session.advance(list(drafted.tokens[:path]), bonus=99)
            if work.session.remaining == 0 or rng.random() < 0.02:
                scheduler.remove(work.session)
                ended += 1
        scheduler.check()
    assert ended == 40
    assert not hopeless
    assert sorted(pool.free_pages) == list(range(LIMITS.n_pages))
