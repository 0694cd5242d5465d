"""What is looked up below the leaves of a tree before it is sent."""

import copy
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from runtime.edge.draft.guide import Guide
from runtime.edge.draft.offering import Offering
from runtime.edge.draft.shares import LONGEST, shares
from runtime.edge.draft.speculation import Noise, Proactive, Speculation, TreeShape
from runtime.tree import ROOT, DraftTree
from tests.edge.drafting import random_pass, random_verdict

SHAPE = TreeShape(max_budget=24, max_n_beams=3, max_beam_len=4, max_branch_width=3)


def speculation(
    prompt: list[int], proactive: Proactive = Proactive.OFF, limit: int = 10**6
) -> Speculation:
    """One whose text repeats itself, whatever tokens below 50 it has."""
    own = Speculation(list(prompt), limit, SHAPE, proactive, Noise(), 10**6)
    own.suffixes.extend(prompt)
    return own


def run(own: Speculation, frontier: list[int], rng: random.Random) -> None:
    """A pass, for which a drafter looks at the new text."""
    own.suffixes.extend(own.context[len(own.suffixes) :])
    random_pass(own, frontier, rng)


def children_of(tree: DraftTree) -> dict[int, list[int]]:
    result: dict[int, list[int]] = {}
    for node in tree.nodes:
        result.setdefault(tree.parents[node], []).append(node)
    return result


def assert_siblings_differ(tree: DraftTree) -> None:
    for children in children_of(tree).values():
        assert len({tree.tokens[node] for node in children}) == len(children)


def expecting(prompt: list[int], next_tokens: list[tuple[int, float]]) -> Speculation:
    """One whose model was run for the root alone, and gave these tokens their probabilities."""
    own = speculation(prompt)
    own.cached = len(own.context)
    own.tree.add_children(ROOT, [(token, math.log(p)) for token, p in next_tokens])
    own.in_flight = False
    return own


@pytest.mark.parametrize("offers", [False, True])
def test_a_leaf_goes_on_as_the_prompt_does(offers: bool) -> None:
    prompt = [*range(100, 112), 7, *range(100, 105)]
    own = expecting(prompt, [(105, 0.8), (3, 0.1)])
    tree = Offering(at_once=True).next(own, 1) if offers else own.send(24)
    assert tree is not None
    assert list(tree.tokens[:5]) == [105, 106, 107, 108, 109], (
        "before what the model finds unlikely"
    )
    assert list(tree.parents[:5]) == [0, 1, 2, 3, 4]
    likely = shares(own.suffixes, [*prompt, 105])[106]
    assert math.exp(own.tree.scores[own.tree.child(1, 106)]) == pytest.approx(0.8 * likely)
    if not offers:
        assert own.commit(3, 9).tokens == (105, 106, 107, 9)


def test_what_was_looked_up_is_run_with_what_is_above_it() -> None:
    prompt = [*range(100, 112), 7, *range(100, 105)]
    for proactive in (Proactive.MULTI, Proactive.SINGLE):
        own = expecting(prompt, [(105, 0.99)])
        own.proactive = proactive
        own.send(4)
        frontier = own.frontier_ahead()
        assert [own.tree.tokens[node] for node in frontier][:3] == [105, 106, 107]
        random_pass(own, frontier, random.Random(1))
        assert_siblings_differ(own.tree)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_sent_is_the_best_of_all_that_could_be_looked_up(seed: int) -> None:
    """Against looking up whatever there is below whatever has not been run."""
    rng = random.Random(seed)
    own = speculation([rng.randrange(50) for _ in range(200)], limit=207 + rng.randint(1, 9))
    own.commit(0, rng.randrange(50))
    for _ in range(rng.randint(1, 3)):
        if frontier := own.frontier(24):
            run(own, frontier, rng)
    most = rng.randint(1, 24)
    own.tree.max_nodes = most
    whole = copy.deepcopy(own.tree)
    todo = [node for node in whole.kept() if node not in whole.expanded]
    while todo:
        leaf = todo.pop()
        if whole.depths[leaf] + 1 > own.limit - len(own.context) - 1:
            continue
        likely = shares(own.suffixes, [*own.context[-LONGEST:], *whole.path(leaf)])
        best = sorted(likely.items(), key=lambda item: (-item[1], item[0]))[:3]
        first = len(whole)
        whole.add_children(leaf, [(token, math.log(share)) for token, share in best])
        todo += [node for node in whole.nodes[first:] if whole.scores[node] > -12]
    sent = own.send(most)
    scores = sorted((own.tree.scores[node] for node in sent.source), reverse=True)
    assert scores == pytest.approx([whole.scores[node] for node in whole.kept()])
    known = {tuple(whole.path(node)) for node in whole.nodes}
    assert {tuple(own.tree.path(node)) for node in sent.source} <= known


@pytest.mark.parametrize("proactive", Proactive)
@pytest.mark.parametrize("seed", range(12))
def test_trees_stay_trees(seed: int, proactive: Proactive) -> None:
    """Through passes before and after sending, and verdicts: in their limits and their order."""
    rng = random.Random(seed)
    prompt = [rng.randrange(50) for _ in range(120)]
    own = speculation(prompt, proactive, limit=len(prompt) + 80)
    looked_up = 0
    own.commit(0, rng.randrange(50))
    while len(own.context) < own.limit - 1:
        for _ in range(rng.randint(1, 4)):
            if frontier := own.frontier(24):
                run(own, frontier, rng)
        most = rng.randint(0, 24)
        sent = own.send(most)
        assert len(sent) <= most
        assert all(parent <= node for node, parent in enumerate(sent.parents))
        assert max(sent.depths(), default=0) < own.limit - len(own.context)
        assert_siblings_differ(own.tree)
        has_run = {ROOT, *own.tree.expanded}
        for parent, children in children_of(own.tree).items():
            if parent not in has_run:
                looked_up += 1
                chances = [own.tree.scores[node] - own.tree.scores[parent] for node in children]
                assert sum(map(math.exp, chances)) <= 1 + 1e-9
        for _ in range(rng.randint(0, 4)):
            if frontier := own.frontier_ahead():
                known = {ROOT, *own.tree.expanded}
                for node in frontier:
                    assert own.tree.parents[node] in known, "it is run behind its parent"
                    known.add(node)
                run(own, frontier, rng)
                assert_siblings_differ(own.tree)
        own.commit(*random_verdict(rng, own))
    assert looked_up >= 10


class Only:
    """A grammar of a few tokens, wherever it stands."""

    def __init__(self, tokens: list[int]):
        bits = np.zeros(128, np.uint8)
        bits[tokens] = 1
        self._mask = np.packbits(bits, bitorder="little").view(np.int32)

    def advance(self, tokens: Sequence[int]) -> None:
        pass

    def after(self, paths: Sequence[Sequence[int]]) -> np.ndarray:
        return np.stack([self._mask] * len(paths))


@pytest.mark.parametrize("token", [0, 31, 32, 63, 106])
def test_what_a_constraint_forbids_is_not_looked_up(token: int) -> None:
    for allowed in ([token], [5]):
        own = expecting([1, 2, token, 7, 1], [(2, 0.9)])
        own.guide = Guide(lambda allowed=allowed: Only(allowed), len(own.context))
        assert (own.send(24).tokens == (2, token)) == (allowed == [token])
