"""Random growth of draft trees, played on a `grow_tree` and on host trees side by side."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.tree import ROOT, DraftTree

NOBODY = -2


@dataclass(frozen=True)
class Shape:
    """budgets: of each tree; width: children of a node; values: how many log-probabilities."""

    budgets: tuple[int, ...]
    beams: int
    width: int
    rounds: int
    values: int = 1000


def empty_state(batch: int, capacity: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """tokens, parents, scores, depths, slots, found of trees without nodes, poisoned."""
    kinds = (torch.int64, torch.int32, torch.float64, torch.int32, torch.int32)
    state = [torch.full((batch, capacity), 77, dtype=kind, device=device) for kind in kinds]
    return [*state, torch.zeros(batch, dtype=torch.int32, device=device)]


def offers(rng: random.Random, batch: int, n_expanded: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities as of draft_topk; few distinct values make many ties."""
    size = (batch, n_expanded, shape.width)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    logprobs = -torch.randint(shape.values, size, generator=generator) * (3.0 / shape.values)
    # rounding can leave a log-probability above zero, and a token may be impossible
    logprobs[logprobs > -3.0 / shape.values] += rng.choice([0.0, 1e-7])
    if shape.values > 2:
        logprobs[torch.rand(size, generator=generator) < 0.05] = -torch.inf
    ids = torch.randint(2**40, size, generator=generator)
    return ids, logprobs.sort(-1, descending=True).values


def play(grow_tree: Callable, shape: Shape, seed: int, device: str = "cpu") -> None:
    """Grow trees round by round; every state and every row equals what DraftTree says."""
    rng, batch = random.Random(seed), len(shape.budgets)
    trees = [DraftTree(budget) for budget in shape.budgets]
    capacity = shape.width * (1 + shape.beams * shape.rounds) + rng.randint(0, 3)
    words = -(-shape.beams * (shape.rounds + 1) // 64)
    state = empty_state(batch, capacity, device)
    budget = torch.tensor(shape.budgets, dtype=torch.int32, device=device)
    expanded = torch.full((batch, 1), ROOT, dtype=torch.int32, device=device)
    places: list[dict[int, int]] = [{} for _ in trees]  # slot of each expanded node
    for round_ in range(shape.rounds + 1):
        ids, logprobs = offers(rng, batch, expanded.shape[1], shape)
        for tree, row, *children in zip(trees, expanded.tolist(), ids, logprobs, strict=True):
            for node, tokens, values in zip(row, *(c.tolist() for c in children), strict=True):
                if node != NOBODY:
                    tree.add_children(node, zip(tokens, values, strict=True))
        first_slot = round_ * shape.beams
        expanded, *rows = grow_tree(
            *(*state, expanded, ids.to(device), logprobs.to(device), budget),
            *(first_slot, shape.beams, words),
        )
        rows = [part.cpu().unflatten(0, (batch, shape.beams)) for part in rows]
        for b, tree in enumerate(trees):
            frontier = tree.frontier(shape.beams)
            tree.expanded += frontier
            places[b] |= {node: first_slot + i for i, node in enumerate(frontier)}
            check_tree(tree, [part[b].cpu() for part in state], places[b])
            check_rows(tree, frontier, expanded[b].tolist(), [p[b] for p in rows], places[b])
            for i in range(len(frontier), shape.beams):
                assert bits(rows[1][b, i]) == {first_slot + i}


def check_tree(tree: DraftTree, state: list[Tensor], places: dict[int, int]) -> None:
    *arrays, found = state
    n = len(tree.tokens)
    assert found == n
    slots = [places.get(node, -1) for node in range(n)]
    for array, expected in zip(
        arrays, (tree.tokens, tree.parents, tree.scores, tree.depths, slots), strict=True
    ):
        assert array[:n].tolist() == expected
        assert (array[n:] == 77).all(), "nothing is written beyond a tree's end"


def check_rows(
    tree: DraftTree,
    frontier: list[int],
    chosen: list[int],
    rows: list[Tensor],
    places: dict[int, int],
) -> None:
    n, tokens, ancestors, depth = len(frontier), *rows
    assert chosen == frontier + [NOBODY] * (len(chosen) - n)
    assert tokens.tolist() == [tree.tokens[node] for node in frontier] + [0] * (len(chosen) - n)
    assert depth.tolist() == [tree.depths[node] for node in frontier] + [0] * (len(chosen) - n)
    for i, node in enumerate(frontier):
        path = set()
        while node != ROOT:
            path.add(places[node])
            node = tree.parents[node]
        assert bits(ancestors[i]) == path


def bits(words: Tensor) -> set[int]:
    return {64 * w + j for w, word in enumerate(words.tolist()) for j in range(64) if word >> j & 1}
