"""Trees: growth keeps the best nodes as a tree, and what is sent keeps parents before children."""

import itertools
import math
import random

import pytest

from runtime.tree import ROOT, DraftTree, OrderedTree, Tree


def random_tree(rng: random.Random, max_nodes: int, passes: int, width: int) -> DraftTree:
    """Grown as the drafter does it, with random log-probabilities."""
    tree = DraftTree(max_nodes)
    tree.add_children(ROOT, [(t, rng.uniform(-5, 0)) for t in rng.sample(range(50), width)])
    for _ in range(passes):
        frontier = tree.frontier(4)
        tree.expanded += frontier
        for node in frontier:
            children = rng.sample(range(50), width)
            tree.add_children(node, [(t, rng.uniform(-5, 0)) for t in children])
    return tree


def brute_force_best(tree: DraftTree) -> float:
    """The largest total score of any subtree with `max_nodes` nodes that hangs under the root."""
    nodes = tree.nodes
    best = float("-inf")
    for subset in itertools.combinations(nodes, min(tree.max_nodes, len(nodes))):
        chosen = set(subset)
        if all(tree.parents[node] in chosen or tree.parents[node] == ROOT for node in chosen):
            best = max(best, sum(tree.scores[node] for node in chosen))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_the_kept_nodes_are_the_best_tree_there_is(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, max_nodes=rng.randint(1, 5), passes=2, width=2)
    assert sum(tree.scores[node] for node in tree.kept()) == pytest.approx(brute_force_best(tree))


@pytest.mark.parametrize("seed", range(50))
def test_sending_order(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, max_nodes=rng.randint(0, 40), passes=3, width=4)
    sent = tree.ordered()
    assert sorted(sent.source) == sorted(tree.kept())
    for node, (token, parent, source) in enumerate(
        zip(sent.tokens, sent.parents, sent.source, strict=True), start=1
    ):
        assert parent < node, "parents come before their children"
        assert token == tree.tokens[source]
        above = sent.source[parent - 1] if parent else ROOT
        assert tree.parents[source] == above
    siblings = list(zip(sent.parents, sent.tokens, strict=True))
    assert len(set(siblings)) == len(siblings)


def test_the_greedy_path_comes_first() -> None:
    """Node 1 is the root's likeliest child, node 2 its likeliest child, and so on."""
    tree = random_tree(random.Random(1), max_nodes=30, passes=4, width=4)
    sent, node = tree.ordered(), 0
    while children := [i + 1 for i, parent in enumerate(sent.parents) if parent == node]:
        likeliest = max(children, key=lambda child: tree.scores[sent.source[child - 1]])
        assert likeliest == node + 1
        node = likeliest


def test_equal_scores_keep_ancestors() -> None:
    """A draft that is sure of itself gives children the score of their parent."""
    tree = DraftTree(max_nodes=2)
    tree.add_children(ROOT, [(1, 0.0), (2, -1.0)])
    tree.expanded += [1]
    tree.add_children(1, [(3, 0.0), (4, 0.0)])
    assert tree.kept() == [1, 3]
    assert tree.ordered() == OrderedTree(tokens=(1, 3), parents=(0, 1), source=(1, 3))


def test_the_frontier_never_repeats_and_never_leaves_the_budget() -> None:
    tree = DraftTree(max_nodes=3)
    tree.add_children(ROOT, [(i, -float(i)) for i in range(6)])
    assert tree.frontier(2) == [1, 2]
    tree.expanded += [1, 2]
    assert tree.frontier(8) == [3]
    tree.expanded += [3]
    assert tree.frontier(8) == []


def test_paths_and_depths() -> None:
    tree = Tree(tokens=(5, 6, 7, 8), parents=(0, 1, 1, 3))
    assert tree.depths() == [1, 2, 2, 3]
    assert tree.path(4) == [1, 3, 4]
    assert tree.path(0) == []
    assert len(Tree()) == 0
    assert Tree().depths() == []


@pytest.mark.parametrize("seed", range(50))
def test_rerooting_is_growing_from_there(seed: int) -> None:
    """Against a tree grown under the new root from the start, with the same discoveries."""
    rng = random.Random(seed)
    tree = random_tree(rng, max_nodes=rng.randint(1, 30), passes=rng.randint(1, 5), width=4)
    root = rng.choice([ROOT, *tree.nodes])
    if root == ROOT:
        assert tree.below(ROOT) == [*tree.nodes]
        return
    inside = [n for n in tree.nodes if n != root and root in ancestors(tree, n)]
    assert tree.below(root) == inside
    grown, number = DraftTree(tree.max_nodes), {root: ROOT}
    for node in inside:
        step = tree.scores[node] - tree.scores[tree.parents[node]]
        grown.add_children(number[tree.parents[node]], [(tree.tokens[node], step)])
        number[node] = len(grown)
    grown.expanded = [number[node] for node in tree.expanded if node in inside]
    moved = tree.reroot(root)
    assert moved.scores == pytest.approx(grown.scores, abs=1e-9)
    grown.scores = moved.scores
    assert moved == grown


def ancestors(tree: DraftTree, node: int) -> set[int]:
    result = {node}
    while node != ROOT:
        node = tree.parents[node]
        result.add(node)
    return result


def test_rerooting_twice_is_rerooting_below() -> None:
    tree = random_tree(random.Random(4), max_nodes=40, passes=4, width=3)
    first = next(node for node in tree.expanded if tree.parents[node] == ROOT)
    second = next(node for node in tree.below(first) if tree.below(node))
    once, twice = (
        tree.reroot(second),
        tree.reroot(first).reroot(1 + tree.below(first).index(second)),
    )
    assert once.scores == pytest.approx(twice.scores)
    twice.scores = once.scores
    assert once == twice


@pytest.mark.parametrize("seed", range(20))
def test_a_frontier_of_chosen_nodes(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, max_nodes=8, passes=2, width=4)
    chosen = rng.sample(tree.nodes, 10)
    waiting = sorted(set(chosen) - set(tree.expanded), key=lambda node: -tree.scores[node])
    assert tree.frontier(3, chosen) == waiting[:3]
    assert tree.frontier(99) == [node for node in tree.kept() if node not in tree.expanded]


@pytest.mark.parametrize("seed", range(20))
def test_a_child_offered_again_is_no_other_node(seed: int) -> None:
    """As if it had been offered with its last score before anything was found below it."""
    rng = random.Random(seed)
    again, once = DraftTree(8), DraftTree(8)
    offers: dict[int, dict[int, float]] = {}
    nodes = [ROOT]
    for _ in range(12):
        parent, before = rng.choice(nodes), len(again)
        children = [(token, -rng.random()) for token in rng.sample(range(5), 3)]
        offers.setdefault(parent, {}).update(children)
        again.add_children(parent, children)
        nodes += again.nodes[before:]
    way = {ROOT: ROOT}
    for node in again.nodes:
        parent, token = again.parents[node], again.tokens[node]
        once.add_children(way[parent], [(token, offers[parent][token])])
        way[node] = len(once)
    assert (again.tokens, again.parents, again.depths) == (once.tokens, once.parents, once.depths)
    assert again.scores == pytest.approx(once.scores)
    assert len({*zip(again.parents, again.tokens, strict=True)}) == 1 + len(again)


def test_children_are_found_by_their_token() -> None:
    tree = random_tree(random.Random(2), max_nodes=9, passes=2, width=4)
    for node in tree.nodes:
        assert tree.child(tree.parents[node], tree.tokens[node]) == node
        assert tree.child(node, 99) is None


def test_ranks_are_the_places_in_the_order_of_likelihood() -> None:
    """Against all nodes sorted by the product of 0.78 / place ** 1.8 along their paths."""
    rng = random.Random(3)
    for _ in range(50):
        size = rng.randrange(1, 40)
        parents = tuple(rng.randrange(node) for node in range(1, size + 1))
        tree = Tree(tuple(range(size)), parents)

        def likelihood(node: int, parents: tuple[int, ...] = parents) -> float:
            if node == 0:
                return 1.0
            above = parents[node - 1]
            place = parents[:node].count(above)
            return likelihood(above) * math.exp(-0.25) / place**1.8

        sorted_s = sorted((likelihood(node) for node in range(1, size + 1)), reverse=True)
        path = tree.path(size)
        for node, rank in zip(path, tree.ranks(path), strict=True):
            assert sorted_s[rank - 1] == pytest.approx(likelihood(node))
    assert Tree().ranks([]) == []


def paths_of(tree: Tree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[n - 1] for n in tree.path(node)) for node in range(1, len(tree) + 1)}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_below_a_path_is_the_ends_of_the_paths_that_begin_so(seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, max_nodes=20, passes=3, width=3).ordered()
    paths = paths_of(tree)
    for start in [(), *paths]:
        below = tree.below(start)
        assert below is not None
        longer = {path[len(start) :] for path in paths if path[: len(start)] == start}
        assert paths_of(below) == longer - {()}
        assert len(below) == len(longer - {()})
        assert all(parent <= node for node, parent in enumerate(below.parents))
    assert tree.below((60,)) is None
    assert tree.below([*max(paths, key=len), 1]) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_best_nodes_of_a_tree_are_a_tree_of_the_first_ranks(seed: int) -> None:
    tree = random_tree(random.Random(seed), max_nodes=20, passes=3, width=3).ordered()
    ranks = tree.ranks(range(1, len(tree) + 1))
    for most in range(len(tree) + 2):
        best = tree.best(most)
        assert len(best) == min(most, len(tree))
        kept = paths_of(best)
        assert kept <= paths_of(tree)
        of_kept = [
            rank
            for node, rank in enumerate(ranks, 1)
            if tuple(tree.tokens[n - 1] for n in tree.path(node)) in kept
        ]
        assert sorted(of_kept) == sorted(ranks)[: len(best)]
