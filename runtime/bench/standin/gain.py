"""What trees gain over texts that are known: drafted by the product's code, verified by looking."""

from collections.abc import Sequence

from runtime.bench.standin.agreement import TEXT_TOKENS, TOKENS
from runtime.edge.draft.batcher import Drafts
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.tree import Tree


def gains(drafter: Drafts, shape: TreeShape) -> list[int]:
    """Tokens of each verification of all of a stand-in's texts, drafted anew after each."""
    gained: list[int] = []
    for first in range(0, TOKENS, TEXT_TOKENS):
        text = [(first - 1 + i) % TOKENS for i in range(TEXT_TOKENS + 1)]
        gained += gains_over(drafter, text[:1], text[1:], shape)
    return gained


def gain_at(drafter: Drafts, place: int, shape: TreeShape) -> int:
    """Tokens of one verification of a stand-in's text, drafted anew after the token `place`."""
    text = [(place + i) % TOKENS for i in range(1, shape.max_beam_len + 2)]
    s = Speculation([place], 1 << 40, shape, Proactive.OFF, Noise(), drafter.vocabulary_size)
    _grow(drafter, s)
    return walk(s.send(shape.max_budget), text)[1] + 1


def gains_over(
    drafter: Drafts, prompt: Sequence[int], ids: Sequence[int], shape: TreeShape
) -> list[int]:
    """Tokens of each verification of an answer; the first, which no draft precedes, is left out."""
    limit, size = len(prompt) + len(ids), drafter.vocabulary_size
    s = Speculation(list(prompt), limit, shape, Proactive.OFF, Noise(), size)
    s.commit(0, ids[0])
    known, gained = 1, []
    while known < len(ids):
        _grow(drafter, s)
        sent = s.send(shape.max_budget)
        node, accepted = walk(sent, ids[known:])
        s.commit(node, ids[known + accepted])
        known += accepted + 1
        gained.append(accepted + 1)
    drafter.finish(s)
    return gained


def walk(tree: Tree, text: Sequence[int]) -> tuple[int, int]:
    """The node where a tree leaves the text, and how many tokens were right; one is left over."""
    children: dict[tuple[int, int], int] = {}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True), 1):
        children[parent, token] = node
    at = 0
    for accepted, token in enumerate(text[:-1]):
        if (below := children.get((at, token))) is None:
            return at, accepted
        at = below
    return at, max(len(text) - 1, 0)


def _grow(drafter: Drafts, s: Speculation) -> None:
    """Read the text that is new, and deepen the tree: a pass for each level."""
    passes = 0
    while passes < s.shape.max_beam_len and (frontier := s.frontier(s.shape.max_budget)):
        one = Pass(s, frontier)
        drafter.run([one])
        # only the last pass over a text gives the first level
        passes += not one.is_text or s.cached == len(s.context)
