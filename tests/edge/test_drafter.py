"""The drafter: best-first growth with true probabilities, and a cache that never drifts."""

import random
from pathlib import Path

import pytest
import torch

from runtime.edge.drafter import Drafter, TreeShape
from runtime.edge.lookup import WEIGHTS
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.tree import OrderedTree
from specedge_kernels import reference

PROMPT = [72, 101, 33, 108, 33, 72, 101, 33]


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 512, 16)


def drafter(engine: Engine, shape: TreeShape, temperature: float = 0.0) -> Drafter:
    result = Drafter(engine)
    result.start(PROMPT, shape, seed=3, noise_temperature=temperature)
    result.commit(OrderedTree(), node=0, bonus=33)
    return result


def coupled_log_probabilities(
    engine: Engine, context: list[int], temperature: float
) -> torch.Tensor:
    """log_softmax(log p + T * noise) after a context, from one fresh pass and brute force."""
    pages = list(range(-(-len(context) // engine.kv.page_size)))
    chain = TreeRequest(context, range(-1, len(context) - 1), 0, pages, (len(context) - 1,))
    p = engine.forward([chain])[0].double().softmax(-1)
    p = mixed_with_lookup(p, context)
    noise = reference.gumbel(3, len(context), torch.arange(p.shape[0]))
    return (p.log() + temperature * noise).log_softmax(-1)


def mixed_with_lookup(p: torch.Tensor, context: list[int], own_text: int = 9) -> torch.Tensor:
    """Followers of the longest suffix seen in the accepted text, the first `own_text` tokens."""
    for n in (3, 2, 1):
        suffix = context[-n:]
        seen = [context[i + n] for i in range(own_text - n) if context[i : i + n] == suffix]
        if seen:
            lookup = torch.bincount(torch.tensor(seen), minlength=p.shape[0]) / len(seen)
            return (1 - WEIGHTS[n]) * p + WEIGHTS[n] * lookup
    return p


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_growth_equals_a_search_over_fresh_passes(
    tiny_pair: tuple[Path, Path], engine: Engine, temperature: float
) -> None:
    """Wide beams leave no approximation: the tree holds the best nodes of all short paths."""
    shape = TreeShape(max_budget=12, max_n_beams=64, max_beam_len=3, max_branch_width=3)
    own = drafter(engine, shape, temperature)
    tree = own.draft(max_nodes=255, max_depth=99)
    oracle = open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 512, 16)
    paths, level = {(): 0.0}, [()]
    for _ in range(3):
        children = {}
        for path in level:
            row = coupled_log_probabilities(oracle, [*PROMPT, 33, *path], temperature)
            for score, token in zip(*(t.tolist() for t in row.topk(3)), strict=True):
                children[(*path, token)] = paths[path] + score
        paths, level = paths | children, list(children)
    best = sorted((path for path in paths if path), key=lambda path: -paths[path])[:12]
    grown = {tuple(tree.tokens[n - 1] for n in tree.path(node)) for node in range(1, 13)}
    assert grown == set(best)


@pytest.mark.parametrize("seed", range(8))
def test_the_cache_never_drifts(tiny_pair: tuple[Path, Path], engine: Engine, seed: int) -> None:
    """After random verdicts the next tree is the one that a new drafter makes of the same text."""
    rng = random.Random(seed)
    shape = TreeShape(rng.randint(1, 40), rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 4))
    own = drafter(engine, shape, temperature=1.0)
    for _ in range(12):
        tree = own.draft(max_nodes=255, max_depth=99)
        own.commit(tree, rng.randint(0, len(tree)), bonus=rng.randrange(250))
    fresh = Drafter(open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: 512, 16))
    fresh.start(own.context, shape, seed=3, noise_temperature=1.0)
    assert own.draft(255, 99) == fresh.draft(255, 99)


def test_a_new_prompt_keeps_what_it_shares(engine: Engine) -> None:
    shape = TreeShape(8, 4, 3, 2)
    own = drafter(engine, shape)
    first = own.draft(255, 99)
    own.start([*PROMPT, 33, 5, 6], shape, seed=3, noise_temperature=0.0)
    own.start([*PROMPT, 33], shape, seed=3, noise_temperature=0.0)
    assert own.cached == len(PROMPT) + 1
    assert own.draft(255, 99) == first


def test_limits(engine: Engine) -> None:
    own = drafter(engine, TreeShape(20, 4, 5, 4))
    assert len(own.draft(max_nodes=7, max_depth=99)) == 7
    assert max(own.draft(max_nodes=255, max_depth=2).depths()) == 2
    assert len(own.draft(max_nodes=255, max_depth=0)) == 0
    assert len(own.draft(max_nodes=0, max_depth=9)) == 0
    assert max(own.draft(255, 99, stop=lambda: True).depths()) == 1


def test_a_full_cache_ends_drafting_not_the_request(engine: Engine) -> None:
    own = Drafter(engine)
    own.start([1] * 505, TreeShape(20, 4, 5, 4), seed=0, noise_temperature=0.0)
    assert len(own.draft(255, 99)) == 0
    own.commit(OrderedTree(), 0, 7)
    assert own.context[-1] == 7
    own.start([1] * 600, TreeShape(20, 4, 5, 4), seed=0, noise_temperature=0.0)
    assert len(own.draft(255, 99)) == 0


def test_coupling_ranks_by_the_noise(engine: Engine) -> None:
    """At a very high temperature the first child is the token that the noise favours."""
    own = drafter(engine, TreeShape(1, 1, 1, 1), temperature=1e4)
    (token,) = own.draft(255, 99).tokens
    assert token == reference.gumbel(3, len(PROMPT) + 1, torch.arange(260)).argmax()
