"""How the tests drive a drafter: by hand, a pass at a time, without a loop or a server."""

import math
import random

from runtime.edge.draft.drafter import Drafter
from runtime.edge.draft.speculation import Noise, Pass, Proactive, Speculation, TreeShape
from runtime.tree import ROOT, OrderedTree

PROMPT = [72, 101, 33, 108, 33, 72, 101, 33]


def speculate(
    shape: TreeShape,
    proactive: Proactive = Proactive.OFF,
    temperature: float = 0.0,
    prompt: list[int] = PROMPT,
    limit: int = 500,
) -> Speculation:
    return Speculation(list(prompt), limit, shape, proactive, Noise(3, temperature), 260)


def grow(drafter: Drafter, speculation: Speculation, max_nodes: int = 255) -> OrderedTree:
    """Draft as long as anything can enter the tree, `max_beam_len` passes at most, and send."""
    passes = 0
    while frontier := speculation.frontier(max_nodes):
        passes += frontier != [ROOT] or speculation.cached + 512 >= len(speculation.context)
        if passes > speculation.shape.max_beam_len:
            break
        if drafter.run([Pass(speculation, frontier)]) == [False]:
            break
    return speculation.send(max_nodes)


def grow_ahead(drafter: Drafter, speculation: Speculation, passes: int) -> None:
    """So many passes while the draft is in flight."""
    for _ in range(passes):
        if frontier := speculation.frontier_ahead():
            drafter.run([Pass(speculation, frontier)])


def random_pass(own: Speculation, frontier: list[int], rng: random.Random) -> None:
    """What the drafter does for a pass, with random log-probabilities."""
    own.places = []
    if frontier == [ROOT]:
        own.cached = len(own.context)
    else:
        own.tree.expanded += frontier
    for node in frontier:
        weights = [rng.random() for _ in range(own.shape.max_branch_width + 1)]
        tokens = rng.sample(range(50), own.shape.max_branch_width)
        own.tree.add_children(
            node, [(t, math.log(w / sum(weights))) for t, w in zip(tokens, weights, strict=False)]
        )


def random_verdict(rng: random.Random, speculation: Speculation) -> tuple[int, int]:
    """A node that was sent and a token after it, often one that has been foreseen."""
    sent, tree = speculation.sent, speculation.tree
    numbers = {ROOT: 0} | {source: i + 1 for i, source in enumerate(sent.source)}
    outcomes = [  # unsent children of the root and of sent nodes
        child
        for child, parent in enumerate(tree.parents)
        if parent in numbers and child not in numbers
    ]
    foreseen = [child for child in outcomes if child in tree.expanded]
    for candidates in (foreseen, outcomes):
        if candidates and rng.random() < 0.6:
            child = rng.choice(candidates)
            return numbers[tree.parents[child]], tree.tokens[child]
    return rng.randint(0, len(sent)), rng.randrange(250)
