"""The scheduler: capacity is never exceeded, nobody starves, no page is lost or read wrongly."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from runtime.history import History
from runtime.server.request import Request
from runtime.server.schedule import prefix_cache
from runtime.server.schedule.scheduler import Limits, Refused, Scheduler, Work
from runtime.server.schedule.spill import Spill
from runtime.tree import Tree
from runtime.wire.messages import Finish, Open, Turn
from tests.server.schedule.fake_model import BONUS, FakeModel

LIMITS = Limits(
    max_requests=4,
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


def make(limits: Limits, spilled_pages: int = 0) -> Scheduler:
    pool = Pool(limits.n_pages)
    return Scheduler(limits, pool.allocate, pool.free, Spill(spilled_pages))


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = make(LIMITS)
    yield scheduler
    scheduler.check()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel(LIMITS.page_size, random.Random(1))


def request(key: int, prompt: int | list[int] = 3, output: int = 5, user: str = "") -> Request:
    context = [key] * prompt if isinstance(prompt, int) else list(prompt)
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, output, len(context), ())
    return Request(key, params, limit=len(context) + output, context=context, user=user)


def chain(nodes: int) -> Tree:
    return Tree(tuple(range(nodes)), tuple(range(nodes)))


def star(nodes: int) -> Tree:
    return Tree(tuple(range(nodes)), (0,) * nodes)


def draft(scheduler: Scheduler, state: Request, tree: Tree, ready_s: float = 0.0) -> None:
    """The edge's tree comes."""
    state.line_up(tree, ready_s)
    scheduler.drafted(state)


def deliver(
    scheduler: Scheduler,
    batch: list[Work],
    paths: list[list[int]],
    plain: Callable[[Request], bool] = lambda state: False,
) -> None:
    """Apply a step to the requests that are still there; those that end are removed.

    The others' edges draft, or they are `plain`.
    """
    if batch:
        scheduler.step_ended()
    for work, path in zip(batch, paths, strict=True):
        state = work.request
        if state.ended:
            continue
        if work.verify:
            assert state.draft is not None
            state.advance([state.draft.tokens[node - 1] for node in path[1:]], bonus=BONUS)
            scheduler.verified(state)
            state.told(Turn.SERVER if plain(state) or state.verifying > 1 else Turn.EDGE)
            if state.is_plain and not state.finish:
                state.line_up(Tree(), 0.0)
                if not state.verifying:
                    scheduler.drafted(state)
        if state.finish:
            scheduler.remove(state)


def step(scheduler: Scheduler, model: FakeModel) -> list[Work]:
    batch = scheduler.next_batch()
    deliver(scheduler, batch, model.step(batch))
    return batch


def first_verdict(scheduler: Scheduler, model: FakeModel, state: Request) -> None:
    scheduler.submit(state)
    while not state.round:
        assert step(scheduler, model), "nothing was ready"


def keys(scheduler: Scheduler) -> list[object]:
    """Who runs, oldest admission first."""
    return [state.key for state in scheduler.running]


def decode(scheduler: Scheduler, model: FakeModel, state: Request) -> None:
    """Plain decoding of a running request to its end."""
    while not state.finish:
        if state.draft is None:
            draft(scheduler, state, Tree())
        assert step(scheduler, model), "nothing was ready"
    scheduler.next_batch()


def test_there_is_room_for_a_tree_where_it_takes_no_pages_from_others(model):
    scheduler = make(replace(LIMITS, n_pages=10))
    states = [request(key, prompt=3, output=5) for key in (1, 2)]
    for state in states:
        first_verdict(scheduler, model, state)
    free = scheduler.cache.room()
    own = len(states[0].pages) * LIMITS.page_size
    fitting = own + free * LIMITS.page_size - len(states[0].context)
    assert [scheduler.has_room(states[0], nodes) for nodes in (0, fitting, fitting + 1)] == [
        *(True, True, False)
    ]


def test_a_prompt_is_prefilled_in_chunks_and_verified_with_the_last(
    scheduler: Scheduler, model: FakeModel
) -> None:
    state = request(1, prompt=20)
    scheduler.submit(state)
    seen = []
    while state.draft is not None:
        (work,) = step(scheduler, model)
        seen.append((work.chunk, work.verify))
    assert seen == [(8, False), (8, False), (3, True)]
    assert scheduler.next_batch() == []


def test_waiting_requests_start_in_order(scheduler: Scheduler) -> None:
    states = [request(key, prompt=10, output=10) for key in range(6)]
    for state in states:
        scheduler.submit(state)
    assert keys(scheduler) == [0, 1, 2, 3]
    scheduler.remove(states[4])
    scheduler.remove(states[1])
    assert keys(scheduler) == [0, 2, 3, 5]
    for state in states:
        if not state.ended:
            scheduler.remove(state)
    assert scheduler.cache.room() == LIMITS.n_pages


def test_admission_takes_pages_for_the_prompt_and_leaves_a_watermark(scheduler: Scheduler) -> None:
    """40 pages: 30 for the first prompt; 4 for a tree stay free, so 7 more are too many."""
    scheduler.submit(request(1, prompt=120, output=20))
    scheduler.submit(request(2, prompt=28, output=20))
    assert [len(s.pages) for s in scheduler.running] == [30]
    scheduler.remove(scheduler.waiting[0])
    scheduler.submit(request(3, prompt=24, output=20))
    assert [len(s.pages) for s in scheduler.running] == [30, 6]


def test_what_cannot_be_admitted_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(Refused, match="needs KV for 212 tokens") as refused:
        scheduler.submit(request(1, prompt=100, output=100))
    assert not refused.value.busy
    for key in range(LIMITS.max_requests + LIMITS.max_waiting):
        scheduler.submit(request(key, prompt=10, output=10))
    with pytest.raises(Refused, match="try again") as refused:
        scheduler.submit(request(99))
    assert refused.value.busy
    assert len(scheduler.waiting) == LIMITS.max_waiting


def test_a_lone_request_that_fits_the_pool_runs(model: FakeModel) -> None:
    """No watermark is kept beside it: 20 tokens and 12 nodes are all that eight pages hold."""
    scheduler = make(replace(LIMITS, n_pages=8))
    state = request(1, prompt=19, output=1)
    first_verdict(scheduler, model, state)
    assert state.finish is Finish.LENGTH
    with pytest.raises(Refused, match="needs KV for 36 tokens"):
        scheduler.submit(request(1, prompt=20, output=1))


def test_users_take_turns(scheduler: Scheduler) -> None:
    """Three requests of one user run; of those that wait, the user that runs fewest is next."""
    crowd = [request(key, user="crowd") for key in range(6)]
    for state in [*crowd, request(6, user="lone")]:
        scheduler.submit(state)
    assert keys(scheduler) == [0, 1, 2, 3]
    scheduler.remove(crowd[0])
    assert keys(scheduler) == [1, 2, 3, 6]
    scheduler.remove(crowd[1])
    assert keys(scheduler) == [2, 3, 6, 4]


def test_one_user_never_has_all_places() -> None:
    """Beyond its share a user waits, others pass it, and it goes on when one of its own ends."""
    scheduler = make(replace(LIMITS, max_user_running=2))
    greedy = [request(number, user="a") for number in range(4)]
    for state in greedy:
        scheduler.submit(state)
    assert keys(scheduler) == [0, 1]
    for number in (10, 11):
        scheduler.submit(request(number, user="b"))
    assert keys(scheduler) == [0, 1, 10, 11]
    scheduler.remove(greedy[0])
    assert keys(scheduler) == [1, 10, 11, 2]
    scheduler.check()


def test_a_prompt_is_hashed_as_it_comes(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its portions waits for the hashes of the whole."""
    hashed = []
    whole = prefix_cache.blake2b
    monkeypatch.setattr(
        prefix_cache, "blake2b", lambda *data, **size: hashed.append(1) or whole(*data, **size)
    )
    state, counts = request(1, 32), []
    state.context.clear()
    for first in range(0, 32, 8):
        state.read(tuple(range(first, first + 8)))
        scheduler.reading(state)
        counts.append(len(hashed))
    assert counts == [2, 4, 6, 8]
    scheduler.submit(state)
    assert len(hashed) == 8
    other = request(2, list(range(32)))
    scheduler.submit(other)
    assert state.page_keys == other.page_keys


def full_pool(model: FakeModel, contexts: tuple[int, ...]) -> tuple[Scheduler, list[Request]]:
    """Requests after their first verdict that hold almost all of 16 pages."""
    scheduler = make(replace(LIMITS, n_pages=16))
    states = [request(key, prompt=tokens, output=20) for key, tokens in enumerate(contexts)]
    for state in states:
        scheduler.submit(state)
    while not all(state.round for state in states):
        assert step(scheduler, model)
    assert keys(scheduler) == list(range(len(contexts)))
    return scheduler, states


def test_a_tree_takes_the_pages_that_it_needs(model: FakeModel) -> None:
    scheduler, (state, *_) = full_pool(model, (12, 10))
    assert len(state.context) == 13
    assert len(state.pages) == 3
    scheduler.next_batch()
    assert len(state.pages) == 3, "without a draft there is no step, and no need"
    draft(scheduler, state, chain(4))  # 13 + 4 tokens: context with root, and tree
    scheduler.next_batch()
    assert len(state.pages) == 5


def test_the_request_admitted_last_is_preempted_and_keeps_its_draft(model: FakeModel) -> None:
    scheduler, (first, second, third) = full_pool(model, (16, 16, 12))
    draft(scheduler, third, chain(2))
    third.ready_s = -1.0  # its draft is the oldest, but age is that of the request
    context = list(third.context)
    for state in (first, second):
        draft(scheduler, state, star(8))
    batch = step(scheduler, model)
    assert [work.request for work in batch] == [first, second]
    assert list(scheduler.waiting) == [third]
    assert (third.pages, third.cached, third.context, third.draft) == ([], 0, context, chain(2))
    scheduler.check()
    for state in (first, second):
        scheduler.remove(state)
    decode(scheduler, model, third)
    assert third.context[: len(context)] == context
    assert third.preemptions == scheduler.preemptions == 1


def test_the_youngest_sits_out_while_older_ones_hold_all_pages(model: FakeModel) -> None:
    """It is not preempted for itself, and it never takes from those who came before."""
    scheduler, (first, second) = full_pool(model, (30, 14))
    draft(scheduler, first, star(12))
    step(scheduler, model)
    draft(scheduler, second, star(12))
    assert step(scheduler, model) == []
    assert second.cached == 14
    assert scheduler.preemptions == 0
    scheduler.remove(first)
    assert [work.request for work in scheduler.next_batch()] == [second]


def test_of_two_drafts_at_once_the_older_request_takes_the_last_pages(model: FakeModel) -> None:
    scheduler, (first, second) = full_pool(model, (30, 14))
    for state in (second, first):
        draft(scheduler, state, star(12))
    assert [work.request for work in scheduler.next_batch()] == [first]
    assert scheduler.preemptions == 0


def test_a_prompt_sits_out_while_there_are_no_pages_for_its_draft(model: FakeModel) -> None:
    """Only one that was preempted while its edge drafted is a prompt without a draft."""
    scheduler, state = make(LIMITS), request(1, prompt=20)
    state.draft = None
    scheduler.submit(state)
    assert [work.chunk for work in step(scheduler, model)] == [8]
    of_others = scheduler.cache.lend(scheduler.cache.room())
    draft(scheduler, state, star(12))
    assert step(scheduler, model) == []
    scheduler.cache.release(of_others)
    assert [work.chunk for work in step(scheduler, model)] == [8]


def test_the_preempted_start_before_all_who_never_ran(model: FakeModel) -> None:
    scheduler, (first, second, third) = full_pool(model, (12, 12, 12))
    scheduler.submit(request(9, prompt=30))
    draft(scheduler, first, star(12))
    step(scheduler, model)
    draft(scheduler, second, star(12))
    draft(scheduler, first, star(12))
    step(scheduler, model)
    assert [s.key for s in scheduler.waiting] == [2, 9]
    scheduler.remove(first)
    scheduler.next_batch()
    assert keys(scheduler) == [1], "the watermark of a preempted request is doubled"
    scheduler.remove(second)
    scheduler.step_ended()
    scheduler.next_batch()
    assert keys(scheduler) == [2, 9]
    assert third.preemptions == 1


def test_a_preempted_request_is_prefilled_while_its_edge_drafts(model: FakeModel) -> None:
    scheduler, (first, second) = full_pool(model, (30, 14))
    while not second.preemptions:
        draft(scheduler, first, star(12))
        assert step(scheduler, model)
    assert second.draft is None
    scheduler.remove(first)
    while batch := step(scheduler, model):
        assert not any(work.verify for work in batch)
    assert second.uncached == 0


@pytest.mark.parametrize(("prompt", "cached"), [(16, 12), (17, 16), (18, 16), (4, 0), (5, 4)])
def test_a_prefix_is_found_by_whole_pages_before_the_root(
    scheduler: Scheduler, model: FakeModel, prompt: int, cached: int
) -> None:
    text = list(range(100, 118))
    decode_all(scheduler, model, request(1, prompt=text))
    second = request(2, prompt=text[:prompt])
    scheduler.submit(second)
    assert second.cached == scheduler.hit_tokens == cached
    decode(scheduler, model, second)


def decode_all(scheduler: Scheduler, model: FakeModel, state: Request) -> None:
    scheduler.submit(state)
    decode(scheduler, model, state)


@pytest.mark.parametrize(("output", "cached"), [(6, 12), (7, 12), (8, 16)])
def test_an_answer_is_found_by_the_next_turn(
    scheduler: Scheduler, model: FakeModel, output: int, cached: int
) -> None:
    """The accepted text is shared too, its last token excepted: its KV was never made."""
    first = request(1, prompt=9, output=output)
    decode_all(scheduler, model, first)
    second = request(2, prompt=[*first.context, 5, 6, 7, 8])
    scheduler.submit(second)
    assert second.cached == cached
    decode(scheduler, model, second)


def test_pages_are_shared_while_their_first_holder_runs(
    scheduler: Scheduler, model: FakeModel
) -> None:
    first, second = request(1, prompt=[7] * 20, output=20), request(2, prompt=[7] * 20, output=20)
    first_verdict(scheduler, model, first)
    scheduler.next_batch()
    scheduler.submit(second)
    assert second.pages[:4] == first.pages[:4]
    assert not set(second.pages[4:]) & set(first.pages)
    scheduler.check()
    scheduler.remove(first)
    decode(scheduler, model, second)


def test_users_share_nothing(scheduler: Scheduler, model: FakeModel) -> None:
    decode_all(scheduler, model, request(1, prompt=[7] * 20, user="a"))
    second = request(2, prompt=[7] * 20, user="b")
    scheduler.submit(second)
    assert second.cached == 0


def test_only_what_a_verdict_was_drawn_from_is_shared(
    scheduler: Scheduler, model: FakeModel
) -> None:
    """A request that leaves without an answer to its step, as one that failed, shares nothing."""
    bad = request(1, prompt=[7] * 12)
    scheduler.submit(bad)
    step(scheduler, model)
    assert bad.cached == 8
    (work,) = scheduler.next_batch()
    assert work.verify
    model.step([work])
    scheduler.remove(bad)
    scheduler.step_ended()
    scheduler.submit(request(2, prompt=[7] * 12))
    assert scheduler.hit_tokens == 0


def test_pages_of_nobody_give_way(scheduler: Scheduler, model: FakeModel) -> None:
    decode_all(scheduler, model, request(1, prompt=[7] * 40))
    decode_all(scheduler, model, request(2, prompt=[8] * 100, output=20))
    assert scheduler.cache.evictions > 0
    assert scheduler.cache.room() == LIMITS.n_pages


def test_pages_in_the_running_step_stay_until_it_is_over(model: FakeModel) -> None:
    """The model may still write to them: they are neither taken from it nor lent to others."""
    scheduler = make(replace(LIMITS, n_pages=16))
    gone, heir = request(1, prompt=36, output=10), request(2, prompt=36, output=10)
    scheduler.submit(gone)
    scheduler.submit(heir)
    batch = scheduler.next_batch()
    pages = list(gone.pages)
    scheduler.remove(gone)
    assert gone.pages == pages
    assert list(scheduler.waiting) == [heir]
    scheduler.check()
    model.step(batch)
    scheduler.step_ended()
    (work,) = scheduler.next_batch()
    assert work.request is heir
    assert gone.pages == []
    scheduler.check()


def test_pages_outside_the_step_are_free_at_once(scheduler: Scheduler, model: FakeModel) -> None:
    idle, busy = request(1, prompt=9, output=10), request(2, prompt=30, output=10)
    first_verdict(scheduler, model, idle)
    scheduler.submit(busy)
    (work,) = scheduler.next_batch()
    assert work.request is busy
    scheduler.remove(idle)
    assert idle.pages == []
    assert scheduler.cache.room() == LIMITS.n_pages - len(busy.pages)


def test_a_key_that_is_used_again_during_the_step(scheduler: Scheduler, model: FakeModel) -> None:
    """The number of a cancelled request may come back before the step with it is over."""
    old, new = request(1, prompt=9), request(1, prompt=6)
    scheduler.submit(old)
    batch = scheduler.next_batch()
    scheduler.remove(old)
    scheduler.submit(new)
    deliver(scheduler, batch, model.step(batch))
    assert new.cached == 0
    decode(scheduler, model, new)
    assert scheduler.cache.room() == LIMITS.n_pages


def random_request(dice: random.Random, key: int) -> Request:
    """Prompts that begin alike, within users and across them."""
    start = dice.randrange(3)
    prompt = [start] * dice.randrange(20) + [dice.randrange(3) for _ in range(dice.randint(1, 12))]
    return request(key, prompt, dice.randint(1, 20), dice.choice(["a", "b"]))


def random_tree(dice: random.Random, state: Request) -> Tree:
    """Nodes at most as deep as the request's text may still grow."""
    parents: list[int] = []
    depths = [0]
    for _ in range(dice.randint(0, LIMITS.max_nodes)):
        parent = dice.randrange(len(depths))
        if depths[parent] + 1 < state.remaining:
            parents.append(parent)
            depths.append(depths[parent] + 1)
    return Tree(tuple(dice.randrange(3) for _ in parents), tuple(parents))


class Ages:
    """Who was first admitted before whom; preemption must never pass an older request over."""

    def __init__(self) -> None:
        self._rank: dict[object, int] = {}
        self.oldest: set[object] = set()

    def check(self, scheduler: Scheduler) -> None:
        for state in scheduler.running:
            self._rank.setdefault(state.key, len(self._rank))
        running = [self._rank[state.key] for state in scheduler.running]
        preempted = [self._rank[s.key] for s in scheduler.waiting if s.preemptions]
        assert [*running, *preempted] == sorted([*running, *preempted])
        assert all(s.key not in self._rank for s in scheduler.waiting if not s.preemptions)
        assert not self.oldest & {s.key for s in scheduler.waiting}, "the oldest was preempted"
        self.oldest.update(keys(scheduler)[:1])


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic(seed: int) -> None:
    """A pool far too small, sharing, and requests that come and go even while a step runs.

    All end, what is cached is always a request's own text, and every limit is kept.
    """
    dice = random.Random(seed)
    limits = replace(LIMITS, n_pages=dice.choice([16, 20, 30]), max_requests=6)
    scheduler, ages = make(limits, spilled_pages=seed % 3 * 5), Ages()
    model = FakeModel(LIMITS.page_size, dice, scheduler.spill.transfers)
    left = [random_request(dice, key) for key in range(40)]
    most = math.log2(limits.n_pages / limits.pages_for(1 + limits.max_nodes)) + 2
    while left or scheduler.running or scheduler.waiting:
        for state in scheduler.running:
            if state.draft is None and dice.random() < 0.7:
                draft(scheduler, state, random_tree(dice, state), ready_s=dice.random())
        ages.check(scheduler)
        scheduler.check()
        batch = scheduler.next_batch()
        oldest = next(iter(scheduler.running)) if scheduler.running else None
        if oldest and (oldest.uncached or oldest.draft is not None):
            assert batch, "the oldest could go on, but nobody does"
        trees = [work.request for work in batch if work.verify]
        assert len(trees) <= limits.max_batch
        assert sum(1 + len(state.draft or ()) for state in trees) <= limits.max_step_nodes
        assert sum(work.chunk for work in batch) <= limits.chunk_tokens
        ages.check(scheduler)
        if left and dice.random() < 0.7:
            try:
                scheduler.submit(left[-1])
                left.pop()
            except Refused:
                assert len(scheduler.waiting) >= limits.max_waiting
        alive = [*scheduler.running, *scheduler.waiting]
        if alive and dice.random() < 0.1:
            gone = dice.choice(alive)
            scheduler.remove(gone)
            ages.oldest.discard(gone.key)
        scheduler.check()
        deliver(scheduler, batch, model.step(batch))
        for state in scheduler.running:
            model.check(state, state.cached)
        assert all(s.preemptions <= most for s in scheduler.waiting)
    scheduler.next_batch()
    scheduler.check()
    assert scheduler.cache.room() == limits.n_pages


def plain(scheduler: Scheduler, model: FakeModel, key: int, output: int = 8) -> Request:
    """A request that decodes plainly, after its first verdict."""
    state = request(key, prompt=4, output=output)
    scheduler.submit(state)
    while not state.round:
        batch = scheduler.next_batch()
        deliver(scheduler, batch, model.step(batch), plain=lambda state: True)
    return state


def ahead(scheduler: Scheduler) -> list[tuple[object, int, bool, bool]]:
    step = scheduler.next_ahead(lambda state: True)
    scheduler.check()
    return [(work.request.key, work.chunk, work.verify, work.follows) for work in step]


@pytest.mark.parametrize("max_nodes", [0, 4])
def test_who_never_drafts_follows_the_step_of_its_prompt(
    scheduler: Scheduler, max_nodes: int
) -> None:
    """Else its second token would come a step late, wherever others keep the model busy."""
    state = request(1, prompt=4, output=8)
    state.edge.max_nodes = max_nodes
    scheduler.submit(state)
    (work,) = scheduler.next_batch()
    assert work.chunk
    assert work.verify
    assert ahead(scheduler) == ([] if max_nodes else [(1, 0, True, True)])


def test_plain_decoding_follows_its_own_step(scheduler: Scheduler, model: FakeModel) -> None:
    state = plain(scheduler, model, 1)
    scheduler.next_batch()
    assert ahead(scheduler) == [(1, 0, True, True)]
    assert state.verifying == 2
    scheduler.take_back()
    assert (state.verifying, state.in_steps) == (1, 1)
    assert scheduler.next_ahead(lambda state: False) == [], "its edge is going to draft"


def test_who_needs_the_text_of_the_step_before_does_not_follow_it(
    scheduler: Scheduler, model: FakeModel
) -> None:
    """Its logits depend on the token that is being drawn; others follow as before."""
    penalised, other = plain(scheduler, model, 1), plain(scheduler, model, 2)
    penalised.history = History(penalised.context, penalised.answer)
    while len(scheduler.next_batch()) < 2:
        deliver(scheduler, [], model.step([]))
    assert ahead(scheduler) == [(2, 0, True, True)]
    assert (penalised.verifying, other.verifying) == (1, 2)


def test_nobody_follows_a_step_that_gives_its_last_token(
    scheduler: Scheduler, model: FakeModel
) -> None:
    state = plain(scheduler, model, 1, output=2)
    assert state.remaining == 1
    scheduler.next_batch()
    assert ahead(scheduler) == []


def test_a_prompt_goes_on_where_the_running_step_leaves_it(scheduler: Scheduler) -> None:
    state = request(1, prompt=20)
    scheduler.submit(state)
    assert [work.chunk for work in scheduler.next_batch()] == [8]
    assert ahead(scheduler) == [(1, 8, False, False)]
    assert state.cached == 16
    scheduler.take_back()
    assert state.cached == 8
    assert ahead(scheduler) == [(1, 8, False, False)]
    scheduler.step_ended()
    assert ahead(scheduler) == [(1, 3, True, False)]


def test_a_draft_that_is_being_verified_is_in_no_other_step(
    scheduler: Scheduler, model: FakeModel
) -> None:
    first, second = request(1, prompt=4), request(2, prompt=4)
    for state in (first, second):
        first_verdict(scheduler, model, state)
    draft(scheduler, first, chain(2))
    scheduler.next_batch()
    assert ahead(scheduler) == []
    draft(scheduler, second, chain(2))
    assert scheduler.has_news
    assert ahead(scheduler) == [(2, 0, True, False)]
    assert not scheduler.has_news


def test_a_step_ahead_takes_pages_from_nobody(model: FakeModel) -> None:
    """Who loses its pages to two older ones is decided between steps."""
    scheduler, (first, second, third) = full_pool(model, (16, 16, 12))
    draft(scheduler, third, chain(2))
    scheduler.next_batch()
    for state in (first, second):
        draft(scheduler, state, star(12))
    assert ahead(scheduler) == []
    assert not scheduler.preemptions
    deliver(scheduler, [*scheduler._steps[0]], model.step(scheduler._steps[0]))
    assert [work.request for work in scheduler.next_batch()] == [first]
    assert scheduler.preemptions == 1


def test_pages_stay_until_the_last_step_that_has_them_is_over(
    scheduler: Scheduler, model: FakeModel
) -> None:
    state = plain(scheduler, model, 1)
    scheduler.next_batch()
    assert ahead(scheduler) == [(1, 0, True, True)]
    pages = list(state.pages)
    scheduler.remove(state)
    scheduler.step_ended()
    assert state.pages == pages
    scheduler.check()
    scheduler.step_ended()
    assert state.pages == []


def random_ahead(dice: random.Random, scheduler: Scheduler) -> list[Work]:
    """The next step, chosen, withdrawn and chosen again."""
    step = scheduler.next_ahead(lambda state: dice.random() < 0.8)
    while step and dice.random() < 0.3:
        scheduler.check()
        scheduler.take_back()
        scheduler.check()
        step = scheduler.next_ahead(lambda state: dice.random() < 0.8)
    return step


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_with_a_step_ahead(seed: int) -> None:
    """The model begins a step before the verdicts of the last one are applied; everything holds."""
    dice = random.Random(seed)
    limits = replace(LIMITS, n_pages=dice.choice([16, 20, 30]), max_requests=6)
    scheduler, ages = make(limits, spilled_pages=seed % 3 * 5), Ages()
    model = FakeModel(LIMITS.page_size, dice, scheduler.spill.transfers)
    left = [random_request(dice, key) for key in range(40)]
    running: list[Work] = []
    overlapped = 0
    while left or running or scheduler.running or scheduler.waiting:
        if left and dice.random() < 0.7:
            try:
                scheduler.submit(left[-1])
                left.pop()
            except Refused:
                assert len(scheduler.waiting) >= limits.max_waiting
        for state in scheduler.running:
            if state.draft is None and not state.verifying and dice.random() < 0.7:
                draft(scheduler, state, random_tree(dice, state), ready_s=dice.random())
        if not running:
            running = scheduler.next_batch()
            if not running:
                continue
            paths = model.step(running)
        step = random_ahead(dice, scheduler)
        alive = [*scheduler.running, *scheduler.waiting]
        if alive and dice.random() < 0.1:
            gone = dice.choice(alive)
            if gone.in_steps and step:
                scheduler.take_back()
                step = []
            scheduler.remove(gone)
            ages.oldest.discard(gone.key)
        scheduler.check()
        if step and dice.random() < 0.1:
            scheduler.take_back()
            step = []
        next_paths = model.step(step)
        overlapped += bool(step)
        if scheduler.running and dice.random() < 0.05:  # now that the model has begun it
            gone = dice.choice([*scheduler.running])
            scheduler.remove(gone)
            ages.oldest.discard(gone.key)
        deliver(scheduler, running, paths, plain=lambda state: state.key % 2 == 0)
        ages.check(scheduler)
        scheduler.check()
        running, paths = step, next_paths
    assert overlapped > 20
    assert scheduler.cache.room() == limits.n_pages
