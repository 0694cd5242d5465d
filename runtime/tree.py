"""Draft trees: best-first growth up to a number of nodes, and the order in which they are sent.

A tree hangs under the root, the last accepted token: node 0 of every tree, which is not counted.
It knows neither models nor sockets, and the same class grows every tree that an edge drafts.
Source: SpecExec (arXiv:2406.02532) and SpecEdge (arXiv:2505.17052, section 4.1).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ROOT = 0  # the node that it is in every tree
# How much rarer than its parent the k-th child of a node is, as a logarithm: see `Tree.ranks`.
RARER = [0.25 + 1.8 * math.log(max(k, 1)) for k in range(256)]


@dataclass(frozen=True)
class Tree:
    """A tree as it is sent: node i is tokens[i - 1], parents come first."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> list[int]:
        """Depth of nodes 1, 2, ...; a child of the root has depth 1."""
        result = [0]
        for parent in self.parents:
            result.append(result[parent] + 1)
        return result[1:]

    def path(self, node: int) -> list[int]:
        """Nodes from the root's child down to `node`; empty for the root."""
        path: list[int] = []
        while node:
            path.append(node)
            node = self.parents[node - 1]
        return path[::-1]

    def below(self, path: Sequence[int]) -> "Tree | None":
        """What stands under the node that these tokens lead to; None where they lead to none."""
        nodes = self.along(path)
        if len(nodes) < len(path):
            return None
        root = nodes[-1] if nodes else 0
        return self._with(root, range(root + 1, len(self) + 1))

    def along(self, path: Sequence[int]) -> list[int]:
        """The nodes that these tokens lead through, as far as they lead through nodes."""
        ways = {
            way: node for node, way in enumerate(zip(self.parents, self.tokens, strict=True), 1)
        }
        nodes: list[int] = []
        for token in path:
            node = ways.get((nodes[-1] if nodes else 0, token))
            if node is None:
                break
            nodes.append(node)
        return nodes

    def best(self, nodes: int) -> "Tree":
        """Its best nodes, by their ranks: so many, or all that there are."""
        if len(self) <= nodes:
            return self
        order = self.ranks(range(1, len(self) + 1))
        best = sorted(range(1, len(self) + 1), key=lambda node: order[node - 1])[:nodes]
        return self._with(0, sorted(best))

    def _with(self, root: int, nodes: Iterable[int]) -> "Tree":
        """That of the nodes, parents first, whose parents are in it too."""
        kept, tokens, parents = {root: 0}, [], []
        for node in nodes:
            if (parent := kept.get(self.parents[node - 1])) is not None:
                kept[node] = len(kept)
                tokens.append(self.tokens[node - 1])
                parents.append(parent)
        return Tree(tuple(tokens), tuple(parents))

    def ranks(self, nodes: Sequence[int]) -> list[int]:
        """Places of these nodes, from 1, if all were sorted by how likely their sender found them.

        It did not say; but siblings come likeliest first, and of most drafts the k-th child of a
        node is about exp(-0.25) / k ** 1.8 times as likely as the node itself.
        """
        if not nodes:
            return []
        children, rarity = [0] * (len(self) + 1), [0.0]
        for parent in self.parents:
            children[parent] += 1
            rarity.append(rarity[parent] + RARER[children[parent]])
        order = sorted(rarity)
        return [bisect_left(order, rarity[node]) for node in nodes]


@dataclass(frozen=True)
class OrderedTree(Tree):
    """A finished draft: depth-first, likeliest child first.

    So the path most often accepted is 1, 2, 3, ... and its KV needs no move. `source[i - 1]` is
    the node of the `DraftTree` that became node i.
    """

    source: tuple[int, ...] = ()


@dataclass
class DraftTree:
    """Nodes in order of discovery, the root first; a child's score never exceeds its parent's.

    Scores are sums of log-probabilities along the path, so the best `max_nodes` nodes always form a
    tree: with a node, all its ancestors are kept. What the root is, its text says.
    """

    max_nodes: int
    tokens: list[int] = field(default_factory=lambda: [-1])
    parents: list[int] = field(default_factory=lambda: [-1])
    scores: list[float] = field(default_factory=lambda: [0.0])
    depths: list[int] = field(default_factory=lambda: [0])
    expanded: list[int] = field(default_factory=list)  # nodes run by the model, in cache order

    def __post_init__(self) -> None:
        self._children: dict[int, list[int]] = {}  # of each node that has some
        for node in self.nodes:
            self._children.setdefault(self.parents[node], []).append(node)

    def add_children(self, parent: int, candidates: Iterable[tuple[int, float]]) -> None:
        """Offer (token, log-probability) children of a node. Tokens are distinct.

        One that was offered before is as likely as it is now, and what is below it as well.
        """
        siblings = self._children.setdefault(parent, [])
        known = {self.tokens[node]: node for node in siblings}
        for token, log_probability in candidates:
            score = self.scores[parent] + min(log_probability, 0.0)
            if token in known:
                self._move(known[token], score)
                continue
            siblings.append(len(self.tokens))
            self.tokens.append(token)
            self.parents.append(parent)
            self.scores.append(score)
            self.depths.append(self.depths[parent] + 1)

    def __len__(self) -> int:
        return len(self.tokens) - 1

    @property
    def nodes(self) -> range:
        """All of them but the root."""
        return range(1, len(self.tokens))

    def best_first(self, nodes: Iterable[int]) -> list[int]:
        """Nodes by falling score; of equals, the one found first."""
        # in order of discovery before, which a stable sort leaves to equals
        return sorted(sorted(nodes), key=self.scores.__getitem__, reverse=True)

    def kept(self) -> list[int]:
        """The best `max_nodes` nodes, best first; none that is impossible."""
        possible = [node for node in self.nodes if self.scores[node] > -math.inf]
        return self.best_first(possible)[: self.max_nodes]

    def frontier(self, width: int, nodes: Iterable[int] | None = None) -> list[int]:
        """The best `width` of some nodes, by default of those kept, that are not expanded yet."""
        done = set(self.expanded)
        candidates = self.kept() if nodes is None else self.best_first(nodes)
        return [node for node in candidates if node not in done][:width]

    def children(self, parent: int) -> list[int]:
        """Those of a node, in order of discovery."""
        return [*self._children.get(parent, ())]

    def child(self, parent: int, token: int) -> int | None:
        """The child of a node with this token, if it has been found."""
        siblings = self._children.get(parent, ())
        return next((node for node in siblings if self.tokens[node] == token), None)

    def below(self, node: int) -> list[int]:
        """All descendants of a node, in order of discovery."""
        inside = {node}
        for child in self.nodes:
            if self.parents[child] in inside:
                inside.add(child)
        return sorted(inside - {node})

    def reroot(self, node: int) -> "DraftTree":
        """The tree below a node as a tree of its own, in the same orders.

        Its scores are those of text that goes through `node`: the way there no longer counts.
        """
        below = self.below(node)
        index = {old: new for new, old in enumerate([node, *below])}
        return DraftTree(
            self.max_nodes,
            tokens=[-1, *(self.tokens[old] for old in below)],
            parents=[-1, *(index[self.parents[old]] for old in below)],
            scores=[self.scores[old] - self.scores[node] for old in index],
            depths=[self.depths[old] - self.depths[node] for old in index],
            expanded=[index[old] for old in self.expanded if old in index and old != node],
        )

    def path(self, node: int) -> list[int]:
        """Tokens from the root's child down to `node`; none for the root."""
        tokens = []
        while node:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def _move(self, node: int, score: float) -> None:
        """Give a node another score; how likely what is below it follows it stays."""
        change = score - self.scores[node]
        for moved in (node, *self.below(node)):
            self.scores[moved] += change

    def ordered(self) -> OrderedTree:
        """The kept nodes in sending order."""
        children: dict[int, list[int]] = {}
        for node in self.kept():  # best first, so siblings come out best first
            children.setdefault(self.parents[node], []).append(node)
        source: list[int] = []
        stack = children.get(ROOT, [])[::-1]
        while stack:
            source.append(stack.pop())
            stack.extend(children.get(source[-1], [])[::-1])
        index = {node: i for i, node in enumerate([ROOT, *source])}
        return OrderedTree(
            tuple(self.tokens[node] for node in source),
            tuple(index[self.parents[node]] for node in source),
            tuple(source),
        )
