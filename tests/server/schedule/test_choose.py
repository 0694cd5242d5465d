"""The rows of a step: every limit is kept, and neither trees nor prompts crowd out the others."""

import random
from dataclasses import replace

import pytest

from runtime.server.request import Request
from runtime.server.schedule.choose import Limits, cuts
from runtime.server.schedule.choose import choose as choose_in_order
from runtime.server.schedule.step import Work
from runtime.tree import Tree
from runtime.wire.messages import Open, Turn

LIMITS = Limits(
    max_requests=64,
    max_waiting=3,
    max_batch=3,
    max_step_nodes=20,
    max_nodes=12,
    chunk_tokens=8,
    page_size=4,
    n_pages=40,
)


def request(key: int, uncached: int, nodes: int | None = 0, ready_s: float = 0.0) -> Request:
    """A running request with `uncached` tokens to prefill and a chain of nodes, if any."""
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 30, ())
    state = Request(key, params, limit=90, context=[0] * 40, cached=39 - uncached, ready_s=ready_s)
    state.draft = None if nodes is None else Tree(tuple(range(nodes)), tuple(range(nodes)))
    return state


def choose(running: list[Request], limits: Limits) -> list[Work]:
    """Sort the requests, which come oldest first, by what they wait for."""
    ready = [s for s in running if s.draft is not None and not s.uncached]
    ready.sort(key=lambda s: s.ready_s)
    return choose_in_order(ready, [s for s in running if s.uncached], limits)


def summary(batch: list[Work]) -> list[tuple[object, int, bool]]:
    return [(work.request.key, work.chunk, work.verify) for work in batch]


def test_oldest_drafts_first_and_prompts_besides() -> None:
    running = [request(1, 0, 8, 3.0), request(2, 0, 8, 1.0), request(3, 0, 8, 2.0), request(4, 30)]
    assert summary(choose(running, LIMITS)) == [(2, 0, True), (3, 0, True), (4, 8, False)], (
        "9 + 9 rows fit, the third tree does not"
    )


def test_the_largest_tree_is_not_starved_by_small_ones() -> None:
    running = [request(1, 0, 12, 0.0), request(2, 0, 7, 1.0), request(3, 0, 7, 1.0)]
    assert summary(choose(running, LIMITS)) == [(1, 0, True)]


def test_a_request_without_a_draft_is_prefilled_but_not_verified() -> None:
    """Preempted while its edge drafts: the KV is there again when the draft comes."""
    assert summary(choose([request(1, 5, None)], LIMITS)) == [(1, 5, False)]
    assert choose([request(1, 0, None)], LIMITS) == []


@pytest.mark.parametrize(
    ("max_batch", "max_step_nodes", "trees"),
    [
        (8, 20, ["ready", "first", "second", "prompt"]),
        (3, 20, ["ready", "first", "second"]),
        (2, 20, ["ready", "first"]),
        (1, 20, ["ready"]),
        (8, 12, ["ready", "first", "second", "prompt"]),
        (8, 11, ["ready", "first", "second"]),
        (8, 10, ["ready", "first"]),
        (8, 9, ["ready"]),
    ],
)
def test_who_decodes_on_stands_behind_trees_and_before_prompts(
    max_batch: int, max_step_nodes: int, trees: list[str]
) -> None:
    """With a row each: 9 of the tree that is ready, 1 of each that follows, 1 of the prompt."""
    limits = replace(LIMITS, max_batch=max_batch, max_step_nodes=max_step_nodes)
    following = [request(1, 0), request(2, 0)]
    step = choose_in_order([request(0, 0, 8)], [request(3, 5)], limits, following)
    names = ["ready", "first", "second", "prompt"]
    assert [names[work.request.key] for work in step if work.verify] == trees
    assert [work.follows for work in step if work.verify] == [
        name in ("first", "second") for name in trees
    ]
    assert step[-1].chunk == 5, "a prompt is read in any case"


@pytest.mark.parametrize(
    ("uncached", "chunks"),
    [
        ([30], [8]),
        ([30, 30], [4, 4]),
        ([30, 9, 3], [4, 1, 3]),
        ([3, 30], [3, 5]),
        ([30, 1], [7, 1]),
        ([30, 2, 2, 2], [4, 2, 2, 0]),
        ([2, 2, 2], [2, 2, 2]),
    ],
)
def test_half_to_the_oldest_prompt_and_the_rest_to_the_shortest(
    uncached: list[int], chunks: list[int]
) -> None:
    running = [request(key, tokens) for key, tokens in enumerate(uncached)]
    got = {work.request.key: work.chunk for work in choose(running, LIMITS)}
    assert [got.get(key, 0) for key in range(len(uncached))] == chunks


def test_a_single_prompt_row_goes_to_the_oldest() -> None:
    running = [request(1, 30), request(2, 1)]
    assert summary(choose(running, replace(LIMITS, chunk_tokens=1))) == [(1, 1, False)]


def test_a_prompt_that_ends_is_verified_at_once_if_there_are_rows() -> None:
    trees = [request(key, 0, 12 if key else 6) for key in range(2)]
    assert summary(choose([*trees, request(5, 4)], LIMITS))[-1] == (5, 4, False), "7 + 13 rows"
    assert summary(choose([trees[0], request(5, 4)], LIMITS))[-1] == (5, 4, True)


@pytest.mark.parametrize("seed", range(30))
def test_limits_and_ages_of_random_steps(seed: int) -> None:
    """Against the limits themselves; and whoever is left out, an older one was in its way."""
    dice = random.Random(seed)
    running = [
        request(key, dice.choice([0, 0, dice.randrange(30)]), dice.choice([None, 0, 5, 12]), key)
        for key in range(dice.randrange(12))
    ]
    dice.shuffle(running)
    batch = choose(running, LIMITS)
    trees = [work.request for work in batch if work.verify]
    rows = sum(1 + len(state.draft or ()) for state in trees)
    assert len(trees) <= LIMITS.max_batch
    assert rows <= LIMITS.max_step_nodes
    wanted = sum(state.uncached for state in running)
    assert sum(work.chunk for work in batch) == min(wanted, LIMITS.chunk_tokens)
    assert len({work.request.key for work in batch}) == len(batch)
    for work in batch:
        assert work.chunk or work.verify
        assert not work.verify or work.chunk == work.request.uncached
    ready = [s for s in running if s.draft is not None and not s.uncached]
    for left_out in [s for s in ready if s not in trees]:
        older = [s for s in trees if s.ready_s < left_out.ready_s]
        room = LIMITS.max_step_nodes - sum(1 + len(s.draft or ()) for s in older)
        assert len(older) == LIMITS.max_batch or 1 + len(left_out.draft or ()) > room


def offering(key: int, nodes: int) -> Request:
    """One that decodes plainly and has offered so many nodes."""
    state = request(key, 0, nodes)
    state.turn = Turn.SERVER
    return state


def test_offers_share_the_rows_of_a_step() -> None:
    """Who wants less leaves more to the others; a tree that was asked for comes whole."""
    trees = [offering(1, 12), offering(2, 1), offering(3, 12)]
    for one, nodes in cuts(trees, 3, 20):
        one.cut(nodes)
    assert [one.nodes for one in trees] == [8, 1, 8], "2 rows of 20 for the second, 9 for each"
    assert [one.edge.nodes for one in trees] == [8, 0, 8], "what was cut is told to who learns"
    assert len(choose(trees, LIMITS)) == 3
    trees = [offering(1, 12), request(2, 0, 12), offering(3, 12)]
    assert [(one.key, nodes) for one, nodes in cuts(trees, 3, 20)] == [(1, 2), (3, 2)]
    assert cuts(trees, 1, 20) == [], "the others are in a later step"
    assert cuts([request(1, 0, 12), request(2, 0, 12)], 2, 20) == []


def test_cuts_against_one_row_after_another() -> None:
    """Rows are dealt out one by one to whoever still wants one: never more than one row apart."""
    rng = random.Random(5)
    for _ in range(300):
        trees = [offering(key, rng.randrange(13)) for key in range(rng.randint(1, 6))]
        rows, wanted = rng.randint(len(trees), 60), [1 + one.nodes for one in trees]
        for one, nodes in cuts(trees, len(trees), rows):
            assert nodes < one.nodes
            one.cut(nodes)
        got = [1 + one.nodes for one in trees]
        assert sum(got) <= rows
        most = max(got)
        assert all(g in (w, most) for g, w in zip(got, wanted, strict=True))
        spare = rows - sum(got)
        assert got == wanted or spare < sum(g < w for g, w in zip(got, wanted, strict=True))
