"""Drafts of a constrained answer: only what fits, ranked as the draft model ranks it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.guide import Guide
from runtime.edge.draft.speculation import Pass, Speculation, TreeShape
from runtime.edge.loading import Vocabulary
from runtime.model.engine import TreeRequest
from runtime.model.tokenizer import Tokenizer
from runtime.tree import ROOT, DraftTree
from specedge_kernels import reference
from tests.edge.drafting import PROMPT, grow, speculate

SHAPE = TreeShape(max_budget=24, max_n_beams=6, max_beam_len=6, max_branch_width=4)
WORDS = [a + b + c for a in ("re", "gre", "blu") for b in ("d", "en") for c in ("", "!", "der!")]
EXPRESSION = "|".join(WORDS)


@pytest.fixture(scope="module")
def vocabulary(tiny_pair: tuple[Path, Path]) -> Vocabulary:
    return Vocabulary(Tokenizer.load(tiny_pair[1]), 260)


def guided(vocabulary: Vocabulary, text: str = EXPRESSION, **options: float) -> Speculation:
    speculation = speculate(SHAPE, **options)
    speculation.guide = Guide(partial(vocabulary.matcher, "regex", text), len(PROMPT))
    return speculation


def texts_of(vocabulary: Vocabulary, tree: DraftTree, said: str = "") -> set[str]:
    return {said + vocabulary.tokenizer.decode(tree.path(node)) for node in tree.nodes}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_what_fits_is_drafted(
    vocabulary: Vocabulary, drafter: Drafter, temperature: float
) -> None:
    own = guided(vocabulary, temperature=temperature)
    own.commit(0, vocabulary.tokenizer.encode("r")[0])
    grow(drafter, own)
    texts = texts_of(vocabulary, own.tree, "r")
    assert texts <= {word[:n] for word in WORDS if word[0] == "r" for n in range(2, 9)}
    assert texts >= {"re", "red", "ree", "red!", "redd", "reen"}
    # of each whole word, its end as well
    ends = [node for node, token in enumerate(own.tree.tokens) if token == 257]
    above = {"r" + vocabulary.tokenizer.decode(own.tree.path(node)) for node in ends}
    assert above <= {word for word in WORDS if word[0] == "r"}
    assert "red" in above
    own.sent = own.tree.ordered()
    stop = own.sent.source.index(ends[0]) + 1
    own.commit(stop, 65)  # of what comes behind a stop token nothing is drafted
    assert grow(drafter, own) == own.tree.ordered()


def test_children_are_ranked_among_those_that_fit(vocabulary: Vocabulary, drafter: Drafter) -> None:
    """Against the reference op over the logits of what fits alone."""
    own = guided(vocabulary, "[b-y]{9}", temperature=1.0)
    own.commit(0, ord("m") - 33)
    drafter.run([Pass(own, own.frontier(9))])
    text = own.context
    pages = drafter.engine.kv.allocate(2)
    request = TreeRequest(text, range(-1, len(text) - 1), 0, pages, (len(text) - 1,))
    logits = drafter.engine.forward([request])
    ids = torch.tensor([token for token in range(256) if "b" <= letter(vocabulary, token) <= "y"])
    expected = reference.draft_topk(
        logits[:, ids], 4, torch.tensor([1.0]), torch.tensor([3]), torch.tensor([len(text)]), ids
    )
    assert own.tree.tokens[1:] == expected[0][0].tolist()
    assert own.tree.scores[1:] == pytest.approx(expected[1][0].tolist(), abs=1e-4)


def letter(vocabulary: Vocabulary, token: int) -> str:
    return (vocabulary.tokenizer.token_bytes.get(token, first=False) or b"").decode("latin-1")


def test_others_in_the_same_pass_draft_as_ever(vocabulary: Vocabulary, drafter: Drafter) -> None:
    alone, beside = speculate(SHAPE), speculate(SHAPE)
    lost, own = guided(vocabulary, "a("), guided(vocabulary)
    for one in (alone, beside, lost, own):
        one.commit(0, 33 if one is not own else vocabulary.tokenizer.encode("g")[0])
    grow(drafter, alone)
    together = [beside, lost, own]
    for _ in range(1 + SHAPE.max_beam_len):
        passes = [Pass(one, frontier) for one in together if (frontier := one.frontier(255))]
        drafter.run(passes)
    # a constraint that cannot be enforced is none: the server says so
    for one in (beside, lost):
        assert one.tree.tokens == alone.tree.tokens
        assert one.tree.scores == alone.tree.scores
    assert "gre" in texts_of(vocabulary, own.tree, "g")
    assert own.tree.child(ROOT, 33) is None


def test_a_target_that_goes_another_way_is_followed(
    vocabulary: Vocabulary, drafter: Drafter
) -> None:
    own, free = guided(vocabulary), speculate(SHAPE)
    for one in (own, free):
        one.commit(0, 33)  # no word begins so
        grow(drafter, one)
    assert own.tree.tokens == free.tree.tokens


def test_an_answer_goes_on_where_it_was_left(vocabulary: Vocabulary, drafter: Drafter) -> None:
    """The end of a resumed prompt is the beginning of the answer."""
    said = vocabulary.tokenizer.encode("gr")
    own = speculate(SHAPE, prompt=[*PROMPT, *said])
    own.guide = Guide(partial(vocabulary.matcher, "regex", EXPRESSION), len(PROMPT))
    own.commit(0, vocabulary.tokenizer.encode("e")[0])
    grow(drafter, own)
    texts = texts_of(vocabulary, own.tree, "gre")
    assert {"gred", "gree"} <= texts <= {word[:n] for word in WORDS for n in range(4, 11)}


class Rising:
    """Of answers whose ids rise, all below 100; a break in them is told once."""

    def __init__(self) -> None:
        self.last = -1

    def advance(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.last, before = token, self.last
            if token <= before:
                self.last = -1
                raise ValueError

    def after(self, paths: Sequence[Sequence[int]]) -> np.ndarray:
        bits = np.zeros((len(paths), 128), np.uint8)
        for row, path in enumerate(paths):
            bits[row, ([self.last, *path][-1] + 1) : 100] = 1
        return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def test_what_is_allowed_is_what_the_matcher_says_of_each_token() -> None:
    guide = Guide(Rising, 2)
    everything = range(100)
    for context, path, last in [
        ([50, 40], [], -1),  # the answer begins behind these
        ([50, 40, 3], [], 3),
        ([50, 40, 3, 31], [], 31),
        ([50, 40, 3, 31], [32], 32),
        ([50, 40, 3, 31, 60], [63, 95], 95),
    ]:
        expected = [token for token in everything if token > last]
        assert guide.allowed(context, path, everything) == expected


def test_a_way_that_does_not_fit_is_not_followed_again() -> None:
    """What a matcher says behind it is worth nothing, so everything is drafted from there on."""
    made: list[Rising] = []

    def make() -> Rising:
        made.append(Rising())
        return made[-1]

    guide = Guide(make, 0)
    assert guide.allowed([7], [], [5, 9]) == [9]
    for context in ([7, 4], [7, 4, 5]):
        assert guide.after(context, [[]]) is None
        assert guide.allowed(context, [], [3, 9]) == [3, 9]
    assert len(made) == 1
