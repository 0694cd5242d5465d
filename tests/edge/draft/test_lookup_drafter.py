"""Drafting without a model: what it finds against a search of all texts, and what it learns."""

import math
import random
from collections.abc import Sequence

import pytest

from runtime.edge.draft.lookup_drafter import EXPECTED, LookupDrafter
from runtime.edge.draft.speculation import (
    MAX_EXPANDED,
    Noise,
    Pass,
    Proactive,
    Speculation,
    TreeShape,
)
from runtime.edge.draft.suffixes import LONGEST, MOST_PLACES, Earlier, Suffixes
from runtime.tree import ROOT

SHAPE = TreeShape(max_budget=24, max_n_beams=4, max_beam_len=6, max_branch_width=4)


def speculation(
    prompt: Sequence[int], proactive: Proactive = Proactive.OFF, limit: int = 10**6
) -> Speculation:
    return Speculation(list(prompt), limit, SHAPE, proactive, Noise(), 10**6)


def matched(text: Sequence[int], place: int, tail: Sequence[int]) -> int:
    length = 0
    while length < min(place, len(tail), LONGEST) and text[place - length - 1] == tail[-length - 1]:
        length += 1
    return length


@pytest.mark.parametrize("seed", range(30))
def test_every_place_behind_the_same_words_is_found(seed: int) -> None:
    """The last ones of them: those of the last two tokens, and those of the last one."""
    rng = random.Random(seed)
    text = [rng.randrange(3 + seed % 5) for _ in range(rng.randint(0, 80))]
    suffixes = Suffixes()
    cut = rng.randint(0, len(text))
    suffixes.extend(text[:cut])
    suffixes.extend(text[cut:])
    for _ in range(20):
        tail = [rng.randrange(8) for _ in range(rng.randint(0, LONGEST))]
        if rng.random() < 0.5:
            tail = [*tail, *text[-3:]][-LONGEST:]
        of_length = {
            least: [p for p in range(len(text)) if matched(text, p, tail) >= least]
            for least in (1, 2)
        }
        places = {*of_length[1][-MOST_PLACES:], *of_length[2][-MOST_PLACES:]}
        expected = sorted((matched(text, place, tail), text[place]) for place in places)
        assert sorted(suffixes.followers(tail)) == expected


def drafted(drafter: LookupDrafter, own: Speculation, max_nodes: int = 24) -> list[list[int]]:
    """The paths of the tree that is sent."""
    while frontier := own.frontier(max_nodes):
        assert drafter.run([Pass(own, frontier)]) == [True]
    tree = own.send(max_nodes)
    return [[tree.tokens[n - 1] for n in tree.path(node)] for node in range(1, len(tree) + 1)]


def test_what_followed_before_is_drafted_as_far_as_the_tree_goes() -> None:
    own, drafter = speculation([*range(40), 99, 5, 6]), LookupDrafter(Earlier(1 << 18))
    own.commit(0, 7)
    paths = drafted(drafter, own)
    assert [*range(8, 32)] in paths, "one line of all the nodes there are"


def test_an_answer_is_looked_up_in_the_next_one() -> None:
    drafter = LookupDrafter(Earlier(1 << 18))
    first = speculation([1, 2, 3])
    first.commit(0, 50)
    drafted(drafter, first)
    for token in (51, 52, 53, 54):
        first.commit(0, token)
    drafter.finish(first)
    second = speculation([9, 8])
    second.commit(0, 51)
    assert [52, 53, 54] in drafted(drafter, second)
    assert drafted(LookupDrafter(Earlier(1 << 18)), speculation([9, 51])) == [], (
        "of another edge there is nothing"
    )


def test_two_continuations_share_by_how_often_they_came() -> None:
    own = speculation([4, 5, 6, 4, 5, 7, 4, 5, 6, 3])
    own.commit(0, 4)
    own.commit(0, 5)
    drafter = LookupDrafter(Earlier(1 << 18))
    drafted(drafter, own)
    scores = {own.tree.tokens[n]: own.tree.scores[n] for n in own.tree.below(ROOT)[:2]}
    trust, rest = EXPECTED[2] * 8 / 9, 0.0
    assert math.exp(scores[6]) == pytest.approx(trust * 2 / 3 + rest)
    assert math.exp(scores[7]) == pytest.approx(trust / 3 + rest)


@pytest.mark.parametrize("proactive", Proactive)
@pytest.mark.parametrize("seed", range(10))
def test_trees_are_distributions_within_all_limits(seed: int, proactive: Proactive) -> None:
    rng = random.Random(seed)
    drafter = LookupDrafter(Earlier(200))
    for _ in range(6):
        prompt = [rng.randrange(6) for _ in range(rng.randint(1, 60))]
        own = speculation(prompt, proactive, limit=len(prompt) + 40)
        own.vocabulary_size = 5  # the target lacks the last one
        while len(own.context) < own.limit:
            while frontier := own.frontier_ahead():
                drafter.run([Pass(own, frontier)])
            own.commit(rng.randint(0, len(own.sent)), rng.randrange(5))
            if len(own.context) >= own.limit:
                break
            paths = drafted(drafter, own, max_nodes=rng.randint(0, 24))
            assert all(len(path) < own.limit - len(own.context) for path in paths)
            assert all(token < 5 for path in paths for token in path)
            assert len(own.tree.expanded) <= MAX_EXPANDED
            for node in (ROOT, *own.tree.expanded):
                below = [n for n, parent in enumerate(own.tree.parents) if parent == node]
                share = sum(math.exp(own.tree.scores[n] - own.tree.scores[node]) for n in below)
                assert share <= 1 + 1e-9
        drafter.finish(own)
        assert len(drafter._earlier) <= 200


def test_a_text_that_misleads_is_trusted_less() -> None:
    """Every token repeats, and what follows it never does."""
    drafter, rng = LookupDrafter(Earlier(1 << 18)), random.Random(3)
    own = speculation([1, 2, 3])
    first = drafter._trust.of(1)
    for token in (rng.randrange(100) for _ in range(400)):
        own.commit(0, token)
        drafted(drafter, own)
    assert drafter._trust.of(1) < first / 2


@pytest.mark.parametrize("budget", [1, 5, 24])
@pytest.mark.parametrize("seed", range(8))
def test_one_pass_finds_all_that_is_kept(seed: int, budget: int) -> None:
    """Nothing of what is kept is left to be expanded, and nothing else was."""
    rng = random.Random(seed)
    text = [rng.randrange(5) for _ in range(rng.randint(2, 80))]
    own, drafter = (
        speculation(text, limit=len(text) + rng.randint(3, 12)),
        LookupDrafter(Earlier(1 << 18)),
    )
    own.commit(0, rng.randrange(5))
    frontier = own.frontier(budget)
    drafter.run([Pass(own, frontier)])
    assert own.frontier(budget) == []
    for node in own.tree.kept():
        if own.tree.depths[node] < own.limit - len(own.context) - 1:
            assert node in own.tree.expanded
    in_vain = [node for node in own.tree.expanded if node not in own.tree.kept()]
    assert not in_vain, "what is not kept was expanded"
