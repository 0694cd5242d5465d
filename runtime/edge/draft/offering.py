"""Which trees an edge offers unasked, while the server decodes plainly and waits for nobody.

By the time that an offer arrives the text has gone on by some tokens. So of a tree only nodes count
that lie further ahead, and of these the ones that an earlier offer, which may still hold, does not
have. An example: two tokens are decoded on the way, and "the cat sat on the mat" is likely to come
again. Behind "the", "cat" and "sat" count for nothing, and the rest is worth an offer. When "cat"
has come, all of it has been offered, and only what may follow "mat" is new.

An edge with a draft model takes its time: of the step that runs when a verdict leaves, what is left
after the ways there and back. What it drafts then is of use when that step ends. Its first offer is
sent whatever it is worth: by when it comes the server knows that this edge takes time, and may ask
it for drafts where its offers bring nothing.

Knows no connection and no clock.
"""

import math

from runtime.edge.draft.speculation import Speculation
from runtime.tree import OrderedTree

# Tokens that an offer is expected to give beyond the earlier one. It costs the server nothing but
# its rows, of which the server takes as many as are worth it, and here a hundred bytes.
LEAST_TOKENS = 0.05
RESERVE = 0.1  # of a step: what comes too late for one is for the next


class Offering:
    """What has been offered for one request, by an edge that has its drafts at once, or not."""

    def __init__(self, at_once: bool) -> None:
        self._at_once = at_once
        self.nodes = 0  # offered so far; one that an offer has in common with the last counts once
        self._base = 0
        self._paths: set[tuple[int, ...]] = set()  # of the last offer's nodes, from its base on

    def next(self, speculation: Speculation, ahead: int) -> OrderedTree | None:
        """The tree of a request as an offer, or None where it is none.

        ahead: tokens that will have been decoded behind the text when it arrives.
        """
        speculation.look_up()
        tree, text = speculation.tree, speculation.context
        head = tuple(text[self._base :]) if self._paths else ()
        if head and head not in self._paths:
            self._paths = set()
        kept = {node: tuple(tree.path(node)) for node in tree.kept()}
        new = [node for node, path in kept.items() if (*head, *path) not in self._paths]
        tokens = speculation.probability(node for node in new if tree.depths[node] > ahead)
        is_heard = self._at_once or self.nodes > 0
        if not kept or (is_heard and tokens < LEAST_TOKENS):
            return None
        self._base, self._paths = len(text), set(kept.values())
        self.nodes += len(new)
        return tree.ordered()


def ahead(answer_s: float, step_s: float) -> int:
    """Steps of the server from one that it tells of until an answer `answer_s` later is of use.

    One at least: the next step has begun when a token is told.
    """
    return max(math.ceil(answer_s / step_s), 1) if step_s > 0 else 1


def due_s(steps: int, rtt_s: float, step_s: float) -> float:
    """How long after a verdict has come what is for the end of so many steps has to be sent."""
    return (steps - RESERVE) * step_s - rtt_s
