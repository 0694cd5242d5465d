"""What is grown ahead, what a verdict leaves of it, and what is counted; no model involved."""

import math
import random

import pytest

from runtime.edge.draft.speculation import MAX_EXPANDED, Noise, Proactive, Speculation, TreeShape
from runtime.tree import ROOT
from tests.edge.drafting import random_pass, random_verdict

SHAPE = TreeShape(max_budget=12, max_n_beams=3, max_beam_len=4, max_branch_width=3)


def speculation(proactive: Proactive, shape: TreeShape = SHAPE, limit: int = 400) -> Speculation:
    return Speculation([7] * 5, limit, shape, proactive, Noise(), 10**6)


@pytest.mark.parametrize("proactive", Proactive)
def test_nothing_is_drafted_after_a_token_that_the_draft_lacks(proactive: Proactive) -> None:
    """Nor below one that was drafted before: the tree of a text that cannot be read is empty."""
    own, rng = speculation(proactive), random.Random(1)
    own.vocabulary_size = 60
    own.commit(0, 59)
    round_trip(own, rng, passes=3, passes_ahead=2)
    assert len(own.sent)
    own.commit(1, 60)
    for token in (60, 3, 4):
        assert own.frontier(12) == []
        assert len(own.send(12)) == 0
        assert own.frontier_ahead() == []
        assert own.commit(0, token).tokens == (token,)
    prompt = Speculation([7, 61, 7], 400, SHAPE, proactive, Noise(), 61)
    assert prompt.frontier_ahead() == prompt.frontier(12) == []


def round_trip(own: Speculation, rng: random.Random, passes: int, passes_ahead: int) -> None:
    for _ in range(passes):
        if frontier := own.frontier(own.shape.max_budget):
            random_pass(own, frontier, rng)
    own.send(own.shape.max_budget)
    for _ in range(passes_ahead):
        if frontier := own.frontier_ahead():
            random_pass(own, frontier, rng)


def outcomes(own: Speculation) -> dict[int, float]:
    """Every unsent child of a sent node or of the root: the probability of just that verdict."""
    sent = {ROOT, *own.sent.source}
    return {
        child: math.exp(own.tree.scores[child])
        for child, parent in enumerate(own.tree.parents)
        if parent in sent and child not in sent
    }


@pytest.mark.parametrize("seed", range(20))
def test_many_outcomes_are_drafted_likeliest_first(seed: int) -> None:
    """No pass goes below an unlikely outcome while a likelier one has not been begun."""
    rng = random.Random(seed)
    own = speculation(Proactive.MULTI)
    for _ in range(6):
        round_trip(own, rng, passes=3, passes_ahead=rng.randint(2, 8))
        frontier = own.frontier_ahead()
        if not frontier:
            continue
        least = min(own.tree.scores[node] for node in frontier)
        unsent = [n for n in own.tree.nodes if n not in own.sent.source]
        best = sorted(unsent, key=lambda n: -own.tree.scores[n])[: SHAPE.max_budget]
        waiting = {*own.sent.source, *best} - {*own.tree.expanded, *frontier}
        assert all(own.tree.scores[node] <= least for node in waiting)
        assert len(frontier) <= SHAPE.max_n_beams
        own.commit(*random_verdict(rng, own))


@pytest.mark.parametrize("seed", range(20))
def test_a_single_outcome_is_the_best_leaf_and_its_best_child(seed: int) -> None:
    rng = random.Random(seed)
    own = speculation(Proactive.SINGLE)
    round_trip(own, rng, passes=3, passes_ahead=0)
    parents = {own.tree.parents[node] for node in own.sent.source}
    leaves = [node for node in own.sent.source if node not in parents]
    leaf = max(leaves, key=lambda node: own.tree.scores[node])
    if leaf not in own.tree.expanded:
        assert own.frontier_ahead() == [leaf]
        random_pass(own, [leaf], rng)
    children = [n for n, parent in enumerate(own.tree.parents) if parent == leaf]
    bonus = max(children, key=lambda node: own.tree.scores[node])
    before = set(own.tree.expanded)
    for _ in range(4):
        random_pass(own, own.frontier_ahead(), rng)
    assert {*own.tree.expanded} - before <= {bonus, *own.tree.below(bonus)}
    assert bonus in own.tree.expanded
    # Another outcome, however much had been drafted below it, starts from nothing.
    other = next(child for child in outcomes(own) if child != bonus)
    own.tree.expanded.append(other)
    parent = own.tree.parents[other]
    node = own.sent.source.index(parent) + 1 if parent else 0
    assert not own.commit(node, own.tree.tokens[other]).hit


def test_single_is_adopted_when_it_comes_true() -> None:
    rng = random.Random(3)
    own = speculation(Proactive.SINGLE)
    round_trip(own, rng, passes=3, passes_ahead=4)
    bonus = own.tree.expanded[-3:][0]
    while own.tree.parents[bonus] not in own.sent.source:
        bonus = own.tree.parents[bonus]
    node = own.sent.source.index(own.tree.parents[bonus]) + 1
    below = own.tree.below(bonus)
    step = own.commit(node, own.tree.tokens[bonus])
    assert step.hit
    assert len(own.tree) == len(below) > 0
    assert own.cached == len(own.context)


def test_nothing_is_drafted_ahead_when_it_is_off() -> None:
    rng = random.Random(0)
    own = speculation(Proactive.OFF)
    assert own.frontier_ahead() == [ROOT], "the prompt is read while the server reads it"
    random_pass(own, [ROOT], rng)
    assert own.frontier_ahead() == []
    own.commit(0, own.tree.tokens[1])
    round_trip(own, rng, passes=3, passes_ahead=3)
    step = own.commit(0, 49)
    assert (step.n_ahead, step.n_reused, step.hit) == (0, 0, False)


def test_while_the_server_has_the_turn_nothing_runs() -> None:
    """Tokens pile up; the next draft reads them all at once."""
    own = speculation(Proactive.MULTI)
    for token in range(4):
        own.commit(0, token)
        assert own.frontier_ahead() == []
    assert own.cached == 0
    assert own.frontier(8) == [ROOT]


def test_plain_decoding_never_runs_the_model() -> None:
    own = speculation(Proactive.MULTI, TreeShape(0, 1, 1, 1))
    assert own.frontier_ahead() == own.frontier(255) == []
    assert len(own.send(255)) == 0
    assert own.frontier_ahead() == []


@pytest.mark.parametrize("seed", range(30))
def test_what_the_counts_mean(seed: int) -> None:
    """Ahead, reused, hit: recounted from the nodes themselves; places increase and fit the text."""
    rng = random.Random(seed)
    own = speculation(rng.choice([Proactive.SINGLE, Proactive.MULTI]))
    for _ in range(8):
        round_trip(own, rng, passes=rng.randint(0, 4), passes_ahead=rng.randint(0, 6))
        tree, sent, text = own.tree, own.sent, len(own.context)
        before = tree.expanded[: own._expanded_before]
        node, bonus = random_verdict(rng, own)
        chain = [sent.source[n - 1] for n in sent.path(node)]
        child = tree.child(chain[-1] if chain else ROOT, bonus)
        step = own.commit(node, bonus)
        assert step.tokens == (*(tree.tokens[n] for n in chain), bonus)
        assert step.n_ahead == len(tree.expanded) - len(before)
        kept = {*chain, *([child, *tree.below(child)] if step.hit else [])} & set(tree.expanded)
        assert step.n_reused == len(kept - set(before))
        assert len(own.context) == text + len(step.tokens)
        assert own.places == sorted(set(own.places))
        assert own.moved_from + len(own.places) == own.cached + len(own.tree.expanded)
        if step.hit:
            assert own.tree == tree.reroot(child)
        assert (own.cached == len(own.context)) == bool(len(own.tree))
        assert own.commit(*random_verdict(rng, own)).n_ahead == 0, "nothing was in flight"


def test_growth_ends_at_the_limits() -> None:
    """Mask words end a tree at 256 expanded nodes, the text's limit ends its depth."""
    rng = random.Random(1)
    own = speculation(Proactive.MULTI, TreeShape(255, 50, 4, 3))
    while frontier := own.frontier_ahead():
        random_pass(own, frontier, rng)
    assert len(own.tree.expanded) == MAX_EXPANDED
    short = speculation(Proactive.MULTI, TreeShape(255, 50, 9, 2), limit=5 + 4)
    while frontier := short.frontier_ahead():
        random_pass(short, frontier, rng)
    assert max(short.tree.depths) == 3, "three drafted tokens and a bonus reach the limit"


def test_the_expected_tokens_are_those_of_the_walk() -> None:
    """Against the sum over all ends of the walk."""
    rng = random.Random(5)
    own = speculation(Proactive.MULTI)
    round_trip(own, rng, passes=4, passes_ahead=0)
    kept, expected = set(own.tree.kept()), 0.0
    for node in (ROOT, *kept):
        reached = math.exp(own.tree.scores[node])
        passed = sum(math.exp(own.tree.scores[n]) for n in kept if own.tree.parents[n] == node)
        expected += (reached - passed) * (len(own.tree.path(node)) + 1)
    assert own.expected_tokens == pytest.approx(expected)
