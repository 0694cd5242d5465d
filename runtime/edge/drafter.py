"""Grows draft trees with the small model and keeps its KV cache in step with the accepted text.

Knows one request and the draft model's engine; nothing of sockets or of the server. The draft's
cache holds a prefix of the context, then the nodes it has expanded for the current tree:

    tokens   [0, cached)                    accepted context in the cache
             [cached, len(context))         run as a chain by the next draft; ends with the root
    nodes    len(context) + i               the i-th expanded node of the tree, if one is grown

Source: SpecEdge (arXiv:2505.17052, section 4.1) for the growth; coupled ranking as in
drafter-invariant speculation (arXiv:2408.07978).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.edge.lookup import SuffixIndex, mix
from runtime.model.engine import Engine, KeptPath, TreeRequest
from runtime.tree import ROOT, DraftTree, OrderedTree
from specedge_kernels import draft_topk

PREFILL_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class TreeShape:
    """The four knobs of the growth, with the paper's names."""

    max_budget: int  # nodes kept
    max_n_beams: int  # nodes expanded in one pass of the draft model
    max_beam_len: int  # passes
    max_branch_width: int  # children considered per node


class Drafter:
    """Drafts for one request at a time."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.capacity_tokens = engine.kv.n_free * engine.kv.page_size
        self.pages = engine.kv.allocate(engine.kv.n_free)
        head_ids = engine.model.head_ids
        if head_ids is None:
            head_ids = torch.arange(engine.model.config.vocab_size, device=engine.model.device)
        self._token_ids = head_ids
        self._index = SuffixIndex()
        self.context: list[int] = []
        self.cached = 0
        self._shape = TreeShape(0, 1, 1, 1)
        self._seed, self._temperature = 0, 0.0
        self._tree = DraftTree(budget=0)

    def start(
        self, prompt: Sequence[int], shape: TreeShape, seed: int, noise_temperature: float
    ) -> None:
        """Begin a request and run its prompt; what the cache already has of it is kept.

        Children are ranked with the noise that the server will draw with at this seed and
        temperature, so that a sampled text is predicted nearly as well as a greedy one; at
        temperature 0 by the draft's own probabilities.
        """
        common = 0
        while common < min(self.cached, len(prompt)) and self.context[common] == prompt[common]:
            common += 1
        self.context, self.cached = list(prompt), common
        self._shape, self._seed, self._temperature = shape, seed, noise_temperature
        self._tree = DraftTree(budget=0)
        self._index = SuffixIndex()
        self._index.extend(prompt)
        if shape.max_budget and self._fits(0):
            while uncached := len(self.context) - self.cached:
                self._extend(min(uncached, PREFILL_CHUNK_TOKENS))

    def draft(
        self, max_nodes: int, max_depth: int, stop: Callable[[], bool] = lambda: False
    ) -> OrderedTree:
        """Grow a tree under the last token of the context, best first.

        At most `max_nodes` nodes, `max_depth` deep; `stop` is asked between passes of the model.
        """
        budget = min(self._shape.max_budget, max_nodes)
        passes = min(self._shape.max_beam_len, max_depth)
        self._tree = tree = DraftTree(budget)
        if budget == 0 or passes == 0 or not self._fits(passes * self._shape.max_n_beams):
            return tree.ordered()
        self.cached = min(self.cached, len(self.context) - 1)  # the root's logits start the tree
        logits = self._extend(len(self.context) - self.cached)
        self._add_children(tree, [ROOT], logits)
        for _ in range(passes - 1):
            frontier = tree.frontier(self._shape.max_n_beams)
            if not frontier or stop():
                break
            self._add_children(tree, frontier, self._expand(tree, frontier))
        return tree.ordered()

    def commit(self, ordered: OrderedTree, node: int, bonus: int) -> None:
        """Apply a verdict to the tree last drafted: keep the path to `node`, append the bonus."""
        path = ordered.path(node)
        slots = []
        for source in (ordered.source[n - 1] for n in path):
            if source not in self._tree.expanded:
                break  # a leaf: the model has not run it, so the next draft will
            slots.append(self._tree.expanded.index(source))
        if slots:
            self.engine.compact([KeptPath(self.pages, len(self.context), slots)])
        if self.cached == len(self.context):
            self.cached += len(slots)
        new = [*(ordered.tokens[n - 1] for n in path), bonus]
        self.context += new
        self._index.extend(new)
        self._tree = DraftTree(budget=0)

    def _fits(self, nodes: int) -> bool:
        """Whether the cache can hold the context and so many nodes; if not, draft nothing."""
        return len(self.context) + nodes <= self.capacity_tokens

    def _extend(self, count: int) -> Tensor:
        """Run the next `count` context tokens as a chain; logits [1, V] after the last."""
        logits = self.engine.forward(
            [
                TreeRequest(
                    tokens=self.context[self.cached : self.cached + count],
                    parents=range(-1, count - 1),
                    prefix_len=self.cached,
                    pages=self.pages,
                    logit_rows=(count - 1,),
                )
            ]
        )
        self.cached += count
        return logits

    def _expand(self, tree: DraftTree, frontier: list[int]) -> Tensor:
        """Run the frontier, whose ancestors are in the cache; logits [len(frontier), V]."""
        tree.expanded += frontier
        slot = {node: i for i, node in enumerate(tree.expanded)} | {ROOT: -1}
        return self.engine.forward(
            [
                TreeRequest(
                    tokens=[tree.tokens[node] for node in frontier],
                    parents=[slot[tree.parents[node]] for node in tree.expanded],
                    prefix_len=len(self.context),
                    pages=self.pages,
                    logit_rows=range(len(frontier)),
                )
            ]
        )

    def _add_children(self, tree: DraftTree, nodes: list[int], logits: Tensor) -> None:
        """Offer each node's likeliest children to the tree."""
        paths = [tree.path(node) for node in nodes]
        shares = [self._index.next_tokens(path) for path in paths]
        mixed, token_ids = mix(logits, self._token_ids, shares)
        position = torch.tensor([len(self.context) + len(path) for path in paths])
        ids, log_probabilities = draft_topk(
            mixed,
            min(self._shape.max_branch_width, mixed.shape[1]),
            mixed.new_full((len(nodes),), self._temperature),
            torch.full_like(position, self._seed).to(mixed.device),
            position.to(mixed.device),
            token_ids,
        )
        for node, tokens, scores in zip(
            nodes, ids.tolist(), log_probabilities.tolist(), strict=True
        ):
            tree.add_children(node, zip(tokens, scores, strict=True))
