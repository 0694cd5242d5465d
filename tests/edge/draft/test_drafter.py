"""The drafter: best-first growth with true probabilities, and a cache that never drifts."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.shares import WEIGHTS
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.edge.draft.suffixes import Earlier, Suffixes
from runtime.model.engine import Engine, TreeRequest
from runtime.model.open import open_engine
from runtime.tree import ROOT, DraftTree, OrderedTree, Tree
from specedge_kernels import draft_topk, reference
from tests.edge.drafting import PROMPT, grow, grow_ahead, random_verdict, speculate


def tiny_engine(tiny_pair: tuple[Path, Path], kv_tokens: int = 512) -> Engine:
    return open_engine(str(tiny_pair[1]), "float32", "cpu", lambda model: kv_tokens, 16)


@pytest.fixture
def engine(tiny_pair: tuple[Path, Path]) -> Engine:
    return tiny_engine(tiny_pair)


@pytest.fixture(scope="module")
def oracle(tiny_pair: tuple[Path, Path]) -> Engine:
    """Room for many texts at once: every path gets pages of its own."""
    return tiny_engine(tiny_pair, kv_tokens=32768)


def started(shape: TreeShape, temperature: float = 0.0) -> Speculation:
    """A speculation after its first verdict."""
    speculation = speculate(shape, temperature=temperature)
    speculation.commit(node=0, bonus=33)
    return speculation


def fresh_logits(oracle: Engine, texts: list[list[int]]) -> torch.Tensor:
    """Logits [len(texts), V] after each text, each run whole and in pages of its own."""
    requests = []
    for text in texts:
        pages = oracle.kv.allocate(oracle.kv.pages_for(len(text)))
        requests.append(
            TreeRequest(text, range(-1, len(text) - 1), 0, pages, logit_rows=(len(text) - 1,))
        )
    logits = oracle.forward(requests)
    for request in requests:
        oracle.kv.free(request.pages)
    return logits


def from_scratch(oracle: Engine, speculation: Speculation) -> DraftTree:
    """The tree in which the same nodes are expanded, each by a fresh pass over its whole text."""
    grown = speculation.tree
    paths = [[], *(grown.path(node) for node in grown.expanded)]
    logits = fresh_logits(oracle, [[*speculation.context, *path] for path in paths])
    ids, scores = draft_topk(
        logits,
        speculation.shape.max_branch_width,
        torch.full((len(paths),), speculation.noise.temperature),
        torch.full((len(paths),), speculation.noise.seed),
        torch.tensor([len(speculation.context) + len(path) for path in paths]),
    )
    tree = DraftTree(grown.max_nodes, expanded=grown.expanded)
    nodes = [ROOT, *grown.expanded]
    children = dict(zip(nodes, zip(ids.tolist(), scores.tolist(), strict=True), strict=True))
    # Children in the order in which the grown tree found them: it need not be that of expansion.
    for node in dict.fromkeys(grown.parents[1:]):
        tree.add_children(node, zip(*children.pop(node), strict=True))
    assert not children, "an expanded node has no children"
    return tree


def assert_equal(tree: DraftTree, expected: DraftTree) -> None:
    assert tree.tokens == expected.tokens
    assert tree.parents == expected.parents
    assert tree.depths == expected.depths
    assert tree.scores == pytest.approx(expected.scores, abs=1e-5)


@pytest.mark.parametrize("proactive", Proactive)
@pytest.mark.parametrize("seed", range(6))
def test_adopted_trees_are_those_grown_from_scratch(
    engine: Engine,
    oracle: Engine,
    monkeypatch: pytest.MonkeyPatch,
    proactive: Proactive,
    seed: int,
) -> None:
    """The KV of text, path, bonus and subtree lies where it belongs, verdict after verdict."""
    # What a lookup finds depends on when it is made; scratch would look later.
    monkeypatch.setattr(Suffixes, "followers", lambda self, tail: [])
    rng = random.Random(seed)
    shape = TreeShape(rng.randint(4, 24), rng.randint(1, 6), rng.randint(1, 4), rng.randint(2, 5))
    drafter, speculation = Drafter(engine), speculate(shape, proactive, rng.choice([0.0, 1.0]))
    hits = 0
    grow_ahead(drafter, speculation, passes=2)
    for _ in range(14):
        step = speculation.commit(*random_verdict(rng, speculation))
        hits += step.hit
        # Where the server keeps the turn, verdicts follow each other without a pass between.
        while rng.random() < 0.3:
            hits += speculation.commit(*random_verdict(rng, speculation)).hit
        assert (speculation.cached == len(speculation.context)) == bool(len(speculation.tree))
        if rng.random() < 0.9:
            grow(drafter, speculation, max_nodes=rng.randint(1, 40))
            grow_ahead(drafter, speculation, passes=rng.randint(0, 6))
            assert_equal(speculation.tree, from_scratch(oracle, speculation))
    assert hits == 0 if proactive is Proactive.OFF else hits >= 2


def test_a_pass_runs_what_was_looked_up_below_what_it_runs(
    engine: Engine, oracle: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children of every node that was run are those that a fresh pass over its text gives."""
    monkeypatch.setattr("runtime.edge.draft.drafter.shares", lambda *looked_at: {})
    shape = TreeShape(16, 6, 1, 3)
    drafter, speculation = Drafter(engine), speculate(shape, Proactive.MULTI)
    rng, together = random.Random(2), 0
    grow_ahead(drafter, speculation, passes=1)
    for _ in range(12):
        speculation.commit(*random_verdict(rng, speculation))
        grow(drafter, speculation)
        for _ in range(3):
            frontier = speculation.frontier_ahead()
            together += sum(speculation.tree.parents[node] in frontier for node in frontier)
            grow_ahead(drafter, speculation, passes=1)
        tree, nodes = speculation.tree, [ROOT, *speculation.tree.expanded]
        texts = [[*speculation.context, *tree.path(node)] for node in nodes]
        log_p = fresh_logits(oracle, texts).log_softmax(-1)
        for node, row in zip(nodes, log_p, strict=True):
            base = tree.scores[node]
            for score, token in zip(*row.topk(shape.max_branch_width), strict=True):
                child = tree.child(node, int(token))
                assert child is not None
                assert tree.scores[child] - base == pytest.approx(float(score), abs=1e-4)
    assert together


def accepted_of(drafter: Drafter, answer: Sequence[int]) -> int:
    """Nodes that a target accepts which says this, whatever is drafted."""
    speculation, accepted = speculate(TreeShape(24, 4, 3, 4), Proactive.OFF), 0
    said = len(speculation.context)
    speculation.commit(0, answer[0])
    while (place := len(speculation.context) - said) < len(answer):
        tree = grow(drafter, speculation, max_nodes=24)
        path = Tree(tree.tokens, tree.parents).along(answer[place:-1])
        speculation.commit(path[-1] if path else 0, answer[place + len(path)])
        accepted += len(path)
    drafter.finish(speculation)
    return accepted


@pytest.mark.parametrize("earlier_tokens", [0, 1000])
def test_an_answer_that_comes_again_is_known(engine: Engine, earlier_tokens: int) -> None:
    """A model that has read nothing cannot know these tokens, so only lookups can."""
    rng = random.Random(4)
    answer = [rng.randrange(60) for _ in range(100)]
    drafter = Drafter(engine, earlier=Earlier(earlier_tokens) if earlier_tokens else None)
    first, second, third = (accepted_of(drafter, answer) for _ in range(3))
    if earlier_tokens:
        assert second > 75
        assert third >= second
    else:
        assert first == second == third < 50


def test_a_text_with_a_token_that_the_draft_lacks_is_not_looked_up(engine: Engine) -> None:
    earlier = Earlier(1000)
    drafter = Drafter(engine, earlier=earlier)
    for token in (5, engine.model.vocab_size):
        speculation = speculate(TreeShape(24, 4, 3, 4), Proactive.OFF)
        speculation.commit(0, 7)
        grow(drafter, speculation)
        speculation.commit(0, token)
        drafter.finish(speculation)
    assert {token for _, token in earlier.followers([7])} == {5}
    assert not earlier.followers([engine.model.vocab_size])


def coupled_log_probabilities(
    engine: Engine, context: list[int], temperature: float
) -> torch.Tensor:
    """softmax(logits + T * noise) after a context, and what is looked up, by brute force."""
    logits = fresh_logits(engine, [context])[0].double()
    noise = reference.gumbel(3, len(context), torch.arange(logits.shape[0]))
    return mixed_with_lookup((logits + temperature * noise).softmax(-1), context).log()


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
    engine: Engine, oracle: Engine, temperature: float
) -> None:
    """Wide beams leave no approximation: the tree holds the best nodes of all short paths."""
    shape = TreeShape(max_budget=12, max_n_beams=64, max_beam_len=3, max_branch_width=3)
    tree = grow(Drafter(engine), started(shape, temperature))
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


@pytest.mark.parametrize("seed", range(4))
def test_the_cache_never_drifts(tiny_pair: tuple[Path, Path], engine: Engine, seed: int) -> None:
    """After random verdicts the next tree is the one that a new drafter makes of the same text."""
    rng = random.Random(seed)
    shape = TreeShape(rng.randint(1, 40), rng.randint(1, 6), rng.randint(1, 5), rng.randint(1, 4))
    drafter, own = Drafter(engine), started(shape, temperature=1.0)
    for _ in range(12):
        tree = grow(drafter, own)
        own.commit(rng.randint(0, len(tree)), bonus=rng.randrange(250))
    other = speculate(shape, temperature=1.0, prompt=own.context)
    assert grow(drafter, own) == grow(Drafter(tiny_engine(tiny_pair)), other)


@pytest.mark.parametrize("proactive", [Proactive.SINGLE, Proactive.MULTI])
def test_requests_that_share_passes_draft_what_they_draft_alone(
    tiny_pair: tuple[Path, Path], proactive: Proactive
) -> None:
    """Three requests of different text, shape and noise, in all mixtures of text and tree."""
    shapes = [TreeShape(20, 4, 4, 3), TreeShape(7, 2, 3, 5), TreeShape(30, 6, 5, 4)]
    prompts = [PROMPT, [5, 6, 7] * 9, [11] * 40]

    def requests() -> list[Speculation]:
        return [
            Speculation(list(prompt), 300, shape, proactive, Noise(seed, seed / 2), 260)
            for seed, (prompt, shape) in enumerate(zip(prompts, shapes, strict=True))
        ]

    def step(speculation: Speculation, pass_number: int) -> list[int]:
        """Every request in a rhythm of its own: four passes, send, two ahead, verdict."""
        phase = (pass_number + speculation.noise.seed) % 7
        if phase == 6 and pass_number > 6:
            rng = random.Random(pass_number + speculation.noise.seed)
            speculation.commit(*random_verdict(rng, speculation))
        if phase == 4 and not speculation.in_flight:
            speculation.send(20)
        return speculation.frontier_ahead() if speculation.in_flight else speculation.frontier(20)

    together, drafter = requests(), Drafter(tiny_engine(tiny_pair))
    for number in range(40):
        wanted = [(one, step(one, number)) for one in together]
        passes = [Pass(one, frontier) for one, frontier in wanted if frontier]
        assert drafter.run(passes) == [True] * len(passes)
    for shared, alone in zip(together, requests(), strict=True):
        drafter = Drafter(tiny_engine(tiny_pair))
        for number in range(40):
            if frontier := step(alone, number):
                drafter.run([Pass(alone, frontier)])
        assert shared.context == alone.context
        assert shared.tree.expanded == alone.tree.expanded
        assert_equal(shared.tree, alone.tree)
        assert len(alone.context) > len(prompts[0])


def test_a_new_prompt_keeps_what_it_shares(engine: Engine) -> None:
    shape = TreeShape(8, 4, 3, 2)
    drafter, own = Drafter(engine), started(shape)
    first = grow(drafter, own)
    own.commit(node=1, bonus=5)
    drafter.finish(own)
    assert grow(drafter, speculate(shape, prompt=[*PROMPT, 33])) == first


def test_a_shared_prefix_is_not_run_again(engine: Engine) -> None:
    """All KV is poisoned between two requests: it shows in the tree if and only if some is kept."""
    shape = TreeShape(8, 4, 3, 2)
    for prompt, is_kept in (([*PROMPT, 33], True), ([1, *PROMPT], False)):
        drafter = Drafter(engine)
        clean = grow(drafter, speculate(shape, prompt=prompt))
        own = started(shape)
        grow(drafter, own)
        drafter.finish(own)
        engine.kv.pools[0].add_(1.0)
        assert (grow(drafter, speculate(shape, prompt=prompt)) != clean) == is_kept


def test_limits(engine: Engine) -> None:
    drafter, shape = Drafter(engine), TreeShape(20, 4, 5, 4)
    assert len(grow(drafter, started(shape), max_nodes=7)) == 7
    assert len(grow(drafter, started(shape), max_nodes=0)) == 0
    for room, depth in ((0, 0), (1, 0), (2, 1), (3, 2), (4, 3)):
        own = speculate(shape, limit=len(PROMPT) + 1 + room)
        own.commit(node=0, bonus=33)
        assert max(grow(drafter, own).depths(), default=0) == depth, room
        drafter.finish(own)


def test_without_room_nothing_is_drafted_and_nothing_fails(tiny_pair: tuple[Path, Path]) -> None:
    """Requests that together need more pages than there are: some decode plainly, none is lost."""
    engine = tiny_engine(tiny_pair, kv_tokens=96)
    drafter, shape = Drafter(engine), TreeShape(12, 4, 3, 3)
    requests = [speculate(shape, Proactive.MULTI, prompt=[n] * 20) for n in range(4)]
    sent = [0] * 4
    for _ in range(10):
        for number, own in enumerate(requests):
            grow_ahead(drafter, own, passes=2)
            own.commit(*random_verdict(random.Random(number), own))
            sent[number] += len(grow(drafter, own))
            held = [page for one in requests for page in one.pages]
            assert len(held) == len(set(held))
            assert len(held) + engine.kv.n_free == engine.kv.n_pages
    assert sent[0] > 0
    assert min(sent) < max(sent)
    for own in requests:
        drafter.finish(own)
    late = speculate(shape, prompt=[9] * 90)
    grow(drafter, late)
    assert late.cached == 90, "what the others held has come back"


def test_a_text_longer_than_the_cache_ends_drafting_not_the_request(engine: Engine) -> None:
    drafter, shape = Drafter(engine), TreeShape(20, 4, 5, 4)
    long = speculate(shape, prompt=[1] * 505, limit=900)
    assert len(grow(drafter, long)) > 0, "what fits is drafted"
    while len(long.context) <= engine.kv.n_pages * engine.kv.page_size:
        long.commit(node=0, bonus=7)
        grow(drafter, long)
    assert long.pages == []
    assert grow(drafter, long) == OrderedTree()
    assert engine.kv.n_free == engine.kv.n_pages


def test_coupling_ranks_by_the_noise(engine: Engine) -> None:
    """At a very high temperature the first child is the token that the noise favours."""
    own = started(TreeShape(1, 1, 1, 1), temperature=1e4)
    (token,) = grow(Drafter(engine), own).tokens
    assert token == reference.gumbel(3, len(PROMPT) + 1, torch.arange(260)).argmax()
