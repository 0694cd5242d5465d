"""Trees grown without the host are those that the host grows, node for node."""

import random
from pathlib import Path

import pytest
import torch

from runtime.edge.device_draft import DeviceDraft, Start
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.tree import ROOT, DraftTree
from specedge_kernels import draft_topk


@pytest.fixture
def engines(tiny_pair: tuple[Path, Path]) -> list[Engine]:
    """Two of the same draft model."""
    name = str(tiny_pair[1])
    return [open_engine(name, "float32", "cpu", lambda model: 1024, 16) for _ in range(2)]


def read(engines: list[Engine], text: list[int], pages: list[int]) -> torch.Tensor:
    """Run a text into the caches; logits [1, V] after it."""
    chain = TreeRequest(text, range(-1, len(text) - 1), 0, pages, (len(text) - 1,))
    return torch.stack([engine.forward([chain]) for engine in engines])[0]


def host_draft(
    engine: Engine, start: Start, logits: torch.Tensor, beams: int, width: int, passes: int
) -> DraftTree:
    """One pass at a time, the tree on the host."""
    tree = DraftTree(start.budget)

    def add_children(nodes: list[int], logits: torch.Tensor) -> None:
        position = [start.context_tokens + len(tree.path(node)) for node in nodes]
        rows = torch.full((len(nodes),), start.noise_temperature)
        seeds = torch.full((len(nodes),), start.seed)
        children = draft_topk(logits, width, rows, seeds, torch.tensor(position))
        for node, *offer in zip(nodes, *(part.tolist() for part in children), strict=True):
            tree.add_children(node, zip(*offer, strict=True))

    add_children([ROOT], logits)
    for _ in range(passes - 1):
        frontier = tree.frontier(beams)
        if not frontier:
            break
        tree.expanded += frontier
        slot = {node: i for i, node in enumerate(tree.expanded)} | {ROOT: -1}
        request = TreeRequest(
            tokens=[tree.tokens[node] for node in frontier],
            parents=[slot[tree.parents[node]] for node in tree.expanded],
            prefix_len=start.context_tokens,
            pages=start.pages,
            logit_rows=range(len(frontier)),
        )
        add_children(frontier, engine.forward([request]))
    return tree


@pytest.mark.parametrize("seed", range(10))
def test_equals_growth_on_the_host(engines: list[Engine], seed: int) -> None:
    """Several trees at once, twice with the same buffers; the caches hold the same KV too."""
    rng = random.Random(seed)
    beams, width, passes = rng.randint(1, 7), rng.randint(1, 7), rng.randint(1, 6)
    pages = torch.randperm(64, generator=torch.Generator().manual_seed(seed)).tolist()
    draft = DeviceDraft(engines[0], beams, width)
    n_trees = rng.randint(1, 3)
    for _ in range(2):
        starts, logits = [], []
        for b in range(n_trees):
            text = [rng.randrange(250) for _ in range(rng.randint(1, 60))]
            own = pages[7 * b : 7 * b + 7]
            temperature = rng.choice([0.0, 1.0])
            starts.append(Start(len(text), own, rng.randint(0, 40), rng.randrange(99), temperature))
            logits.append(read(engines, text, own))
        grown = draft.grow(starts, torch.cat(logits), passes)
        for start, tree, root in zip(starts, grown, logits, strict=True):
            assert tree == host_draft(engines[1], start, root, beams, width, passes)
            end = start.context_tokens + len(tree.expanded)
            assert torch.equal(
                *(engine.kv.kv[:, :, start.pages].flatten(2, 3)[:, :, :end] for engine in engines)
            )


def test_gaps_of_short_frontiers_are_closed(engines: list[Engine]) -> None:
    """Two children cannot fill six beams: the nodes of later passes move up behind them."""
    pages = list(range(6))
    logits = read(engines, [5, 6, 7], pages)
    start = Start(3, pages, budget=30, seed=1, noise_temperature=0.0)
    (tree,) = DeviceDraft(engines[0], 6, 2).grow([start], logits, passes=5)
    assert len(tree.expanded) == 2 + 4 + 6 + 6
    assert tree == host_draft(engines[1], start, logits, 6, 2, 5)
    node = max(tree.expanded, key=lambda node: tree.depths[node])
    slot = {n: i for i, n in enumerate(tree.expanded)} | {ROOT: -1}
    parents = [slot[tree.parents[n]] for n in tree.expanded] + [slot[node]]
    below = TreeRequest([9], parents, 3, pages, (0,))
    alone = read(engines[1:], [5, 6, 7, *tree.path(node), 9], pages)
    assert torch.equal(engines[0].forward([below]), alone)


def test_what_cannot_be_grown(engines: list[Engine]) -> None:
    logits = torch.zeros(1, 260)
    draft = DeviceDraft(engines[0], 8, 4)
    assert draft.grow([], logits[:0], 3) == []
    start = Start(10, [0, 1], budget=8, seed=0, noise_temperature=0.0)
    with pytest.raises(ValueError, match="0 passes of 8 nodes; expected at least one"):
        draft.grow([start], logits, 0)
    with pytest.raises(ValueError, match=r"33 passes of 8 nodes; .* at most 256"):
        draft.grow([start], logits, 33)
    with pytest.raises(ValueError, match=r"a context of 10 tokens and 24 nodes do not fit .* 32"):
        draft.grow([start], logits, 4)
    assert not engines[0].kv.kv.any()
