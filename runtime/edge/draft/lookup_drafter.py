"""Drafts without a model: what stood behind the same words before, in this text and earlier ones.

In place of a `Drafter`, for an edge that has no weights. Such a draft costs next to nothing, so it
is only a question of which continuations are likely; how far a match of which length can be trusted
is learned from what the target says.
"""

import heapq
import math
import sys
from collections.abc import Sequence

from runtime.edge.draft.speculation import Pass, Speculation
from runtime.edge.draft.suffixes import LONGEST, Earlier, Suffixes, Trust
from runtime.tree import ROOT

# How often what followed is right after a match of each length, before anything is known here.
EXPECTED = {length: 0.1 + 0.05 * length for length in range(1, LONGEST + 1)}


class LookupDrafter:
    """One for all requests of an edge; its texts are those of one user."""

    vocabulary_size = sys.maxsize  # it can draft whatever it has read
    at_once = True

    def __init__(self, earlier: Earlier) -> None:
        self._earlier, self._trust = earlier, Trust(EXPECTED)

    def run(self, passes: Sequence[Pass]) -> list[bool]:
        """Grow the tree of each as far as it goes; there is always room."""
        for one in passes:
            speculation, frontier = one.speculation, one.frontier
            text = self._text_of(speculation)
            speculation.places = []  # there is no cache whose order would matter
            speculation.cached = len(speculation.context)
            self._expand(speculation, frontier, text)
            if not speculation.in_flight:
                self._grow(speculation, text)
            while frontier := speculation.frontier_ahead():
                self._expand(speculation, frontier, text)
        return [True] * len(passes)

    def _grow(self, speculation: Speculation, text: Suffixes) -> None:
        """Expand all nodes of the tree that is kept in the end: best first, each is looked at once.

        A child is no likelier than what is above it, so of what is left nothing is better than the
        best of those found.
        """
        tree, done = speculation.tree, set(speculation.tree.expanded)
        best = [(-tree.scores[node], node) for node in tree.nodes]
        heapq.heapify(best)
        for _ in range(tree.max_nodes):
            if not best:
                return
            _, node = heapq.heappop(best)
            if node in done or not speculation.may_go_on(node):
                continue
            found = len(tree.nodes)
            self._expand(speculation, [node], text)
            for child in tree.nodes[found:]:
                heapq.heappush(best, (-tree.scores[child], child))

    def _expand(self, speculation: Speculation, nodes: Sequence[int], text: Suffixes) -> None:
        if nodes != [ROOT]:
            speculation.tree.expanded += nodes
        for node in nodes:
            self._add_children(speculation, node, text)

    def finish(self, speculation: Speculation) -> None:
        """End a request; its text is looked up for those that come."""
        self._earlier.add(speculation.context)
        speculation.forget_cache()

    def _text_of(self, speculation: Speculation) -> Suffixes:
        """The request's own text so far, its new tokens looked at before they are taken in."""
        text, context = speculation.suffixes, speculation.context
        is_answer = len(text) > 0  # of a prompt there is nothing to be learned
        for place in range(len(text), len(context)):
            if is_answer:
                self._learn(context[max(place - LONGEST, 0) : place], text, context[place])
            text.extend(context[place : place + 1])
        return text

    def _learn(self, tail: Sequence[int], own: Suffixes, token: int) -> None:
        """The target says that this token follows."""
        for length, counts in self._found(tail, own):
            self._trust.saw(length, token in counts)
            if token in counts:
                return

    def _found(self, tail: Sequence[int], own: Suffixes) -> list[tuple[int, dict[int, int]]]:
        """Length of a match, and how often each token followed, in all texts; the longest first."""
        found: dict[int, dict[int, int]] = {}
        for text in (own, self._earlier):
            for length, token in text.followers(tail):
                counts = found.setdefault(length, {})
                counts[token] = counts.get(token, 0) + 1
        return sorted(found.items(), reverse=True)

    def _likely(self, tail: Sequence[int], own: Suffixes) -> dict[int, float]:
        """Token -> probability: what a longer match leaves open, the shorter ones share."""
        likely: dict[int, float] = {}
        left = 1.0
        for length, counts in self._found(tail, own):
            trust, total = self._trust.of(length), sum(counts.values())
            for token, count in counts.items():
                likely[token] = likely.get(token, 0.0) + left * trust * count / total
            left *= 1 - trust
        return likely

    def _add_children(self, speculation: Speculation, node: int, text: Suffixes) -> None:
        path = speculation.tree.path(node)
        likely = self._likely([*speculation.context[-LONGEST:], *path][-LONGEST:], text)
        known = [token for token in likely if token < speculation.vocabulary_size]
        best = sorted(known, key=lambda token: (-likely[token], token))
        children = [(token, math.log(likely[token])) for token in best]
        speculation.tree.add_children(node, children[: speculation.shape.max_branch_width])
