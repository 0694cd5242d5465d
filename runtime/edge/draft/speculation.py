"""One request on the edge: its text, the draft tree under it, and what of both the cache holds.

Bookkeeping between two passes of the draft model, which is all that a verdict needs; it knows
neither model nor sockets nor clocks. The cache holds

    tokens   [0, cached)             accepted text
             [cached, len(context))  run as a chain by the next passes; ends with the root
    nodes    len(context) + i        the i-th expanded node; there is a tree once all text is cached

There is one tree. While a part of it is in flight it goes on growing: an unsent child y of a sent
node v is the hypothesis that the walk stops at v and the bonus is y, and its score is the
log-probability of just that. So best-first growth shares the work among all hypotheses, and what
has grown below the right one is the next tree.
Source: SpecEdge (arXiv:2505.17052, sections 4.1 and 4.2) for growth and `Proactive.SINGLE`;
many outcomes at once as in Saguaro (arXiv:2603.03251), here over trees.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from runtime.edge.draft.guide import Guide
from runtime.edge.draft.shares import LONGEST, Recalled, shares
from runtime.edge.draft.suffixes import Suffixes
from runtime.history import History
from runtime.tree import ROOT, DraftTree, OrderedTree

# What an offer may have of what is verified at once. The text goes on by a token or more before it
# is looked at, and all that stands beside its way is lost.
OFFERED_SHARES, MAX_OFFERED = 2, 255  # more nodes a message cannot hold
MAX_EXPANDED = 256  # what the four mask words of tree attention can tell apart


class Proactive(Enum):
    """What is drafted while a tree is in flight."""

    OFF = "off"
    SINGLE = "single"  # below the best leaf's best child, as in the paper
    MULTI = "multi"  # below every unsent node, by its probability


@dataclass(frozen=True)
class TreeShape:
    """The four knobs of the growth, with the paper's names."""

    max_budget: int  # nodes kept
    max_n_beams: int  # nodes expanded in one pass of the draft model
    max_beam_len: int  # passes before a tree is sent
    max_branch_width: int  # children considered per node


@dataclass(frozen=True)
class Noise:
    """What the server draws with, so that children are ranked by it; temperature 0 for without."""

    seed: int = 0
    temperature: float = 0.0


@dataclass(frozen=True)
class Edits:
    """What the target changes its logits by: biases by token id, then the penalties."""

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def change_something(self) -> bool:
        return self != Edits()

    def history(self, prompt: Sequence[int], output_tokens: int) -> History | None:
        """Of a text whose last tokens are output, as far as these look at it."""
        output = prompt[len(prompt) - output_tokens :]
        if self.repetition != 1:
            return History(prompt, output)
        return History((), output) if self.frequency or self.presence else None


@dataclass(frozen=True)
class Commit:
    """What a verdict did: tokens gained, and what became of the nodes expanded in flight.

    `grown` is the whole tree as the verdict found it; the nodes of `sent` are some of its nodes.
    """

    tokens: tuple[int, ...]
    sent: OrderedTree
    grown: DraftTree
    n_ahead: int  # nodes expanded while the tree was in flight
    n_reused: int  # of these, nodes whose KV is kept
    hit: bool  # the bonus was among them or before: the next tree has begun


@dataclass
class Speculation:
    """The draft side of one request. `limit` counts the tokens that the text may have.

    Nothing is drafted any more once the text has a token that the draft model lacks.
    """

    context: list[int]
    limit: int
    shape: TreeShape
    proactive: Proactive
    noise: Noise
    vocabulary_size: int  # ids that both models have are below it
    guide: Guide | None = None  # where the answer has to fit a constraint
    edits: Edits | None = None  # that the target makes to its logits
    history: History | None = None  # of the text, where they look at it
    cached: int = 0
    pages: list[int] = field(default_factory=list)
    # Where the cache is out of order: place moved_from + i belongs to what lies at
    # moved_from + places[i].
    moved_from: int = 0
    places: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tree = self._new_tree()
        self.sent = OrderedTree()
        self.in_flight = True  # the prompt is a draft without nodes
        self._expanded_before = 0  # of the tree's expanded nodes, when it was sent
        self.suffixes = Suffixes()  # of the context, as far as a drafter has looked at it
        self.recalled: Recalled | None = None  # of earlier texts, likewise
        self.is_readable = max(self.context) < self.vocabulary_size

    @property
    def expected_tokens(self) -> float:
        """Of the next verdict, if the tree were sent now and the draft model were right."""
        return 1 + self.probability(self.tree.kept())

    def probability(self, nodes: Iterable[int]) -> float:
        """Sum over nodes of the probability that the text goes through them."""
        return sum(math.exp(self.tree.scores[node]) for node in nodes)

    def frontier(self, max_nodes: int) -> list[int]:
        """The nodes that the next pass expands on the way to a tree of `max_nodes`; none when done.

        `ROOT` alone means the text that the cache does not have yet.
        """
        self.tree.max_nodes = min(self.shape.max_budget, max_nodes)
        return self._expandable(self.tree.kept()) if self.tree.max_nodes else []

    def frontier_to_offer(self) -> list[int]:
        """The same on the way to an offer, which may have more: what fits of it is verified."""
        self.tree.max_nodes = min(OFFERED_SHARES * self.shape.max_budget, MAX_OFFERED)
        return self._expandable(self.tree.kept()) if self.tree.max_nodes else []

    def frontier_ahead(self) -> list[int]:
        """The same while a draft is in flight; none where there is nothing more to be foreseen."""
        if not self.in_flight or self.shape.max_budget == 0:
            return []
        self.tree.max_nodes = self.shape.max_budget
        match self.proactive:
            case Proactive.OFF:
                return self._expandable([])
            case Proactive.SINGLE:
                return self._expandable(self._single())
            case Proactive.MULTI:
                sent = set(self.sent.source)
                unsent = [node for node in self.tree.nodes if node not in sent]
                best = self.tree.best_first(unsent)[: self.tree.max_nodes]
                return self._expandable([*sent, *best])

    def may_go_on(self, node: int) -> bool:
        """Whether children of a node could still be accepted, and there is room to expand it."""
        is_in_reach = self.tree.depths[node] < self._deepest
        return self.is_readable and is_in_reach and len(self.tree.expanded) < MAX_EXPANDED

    def send(self, max_nodes: int) -> OrderedTree:
        """The best nodes, in sending order; the tree goes on growing around them."""
        self.tree.max_nodes = min(self.shape.max_budget, max_nodes)
        self.look_up()
        self.sent, self.in_flight = self.tree.ordered(), True
        self._expanded_before = len(self.tree.expanded)
        return self.sent

    def look_up(self) -> None:
        """Go on below the leaves of the kept tree with what stood behind the same words before.

        That takes no pass of the draft model. So nodes may stand below others that have not been
        run; a pass can run them together.
        """
        tree, run, kept = self.tree, {ROOT, *self.tree.expanded}, self.tree.kept()
        is_full = 0 < tree.max_nodes == len(kept)
        least = tree.scores[kept[-1]] if is_full else -math.inf  # of those that may be kept
        leaves = [node for node in kept if node not in run and tree.parents[node] in run]
        best = [(-tree.scores[leaf], leaf) for leaf in leaves]  # a heap: it is sorted
        for _ in range(tree.max_nodes):
            if not best or -best[0][0] <= least:
                return
            _, node = heapq.heappop(best)
            if tree.depths[node] < self._deepest:
                self._look_up_below(node)
                for child in tree.children(node):
                    heapq.heappush(best, (-tree.scores[child], child))

    def _look_up_below(self, node: int) -> None:
        path = self.tree.path(node)
        likely = shares(self.suffixes, [*self.context[-LONGEST:], *path], self.recalled)
        if likely and self.guide is not None:
            fit = self.guide.allowed(self.context, path, likely)
            likely = {token: likely[token] for token in fit}
        likeliest = sorted(likely, key=lambda token: (-likely[token], token))
        children = [(token, math.log(likely[token])) for token in likeliest]
        self.tree.add_children(node, children[: self.shape.max_branch_width])

    def commit(self, node: int, bonus: int) -> Commit:
        """Apply a verdict: keep the path to `node`, then `bonus` and, if foreseen, what is below.

        Nothing moves in the cache yet; `places` says what the next pass has to move.
        """
        path = self.sent.path(node)
        tokens = (*(self.sent.tokens[n - 1] for n in path), bonus)
        chain = [self.sent.source[n - 1] for n in path]
        foreseen = self._foreseen(chain[-1] if chain else ROOT, bonus)
        if foreseen is not None:
            chain.append(foreseen)
        grown, before = self.tree, self._expanded_before
        stay = self._go_on(tokens, chain, foreseen)
        commit = Commit(
            tokens,
            self.sent,
            grown,
            n_ahead=len(grown.expanded) - before,
            n_reused=sum(place >= before for place in stay),
            hit=foreseen is not None,
        )
        if self.history is not None:
            self.history.extend(tokens)
        self.is_readable = self.is_readable and max(tokens) < self.vocabulary_size
        self.sent, self.in_flight = OrderedTree(), False
        self._expanded_before = len(self.tree.expanded)
        return commit

    def position(self, path: Sequence[int]) -> int:
        """Where a token behind this path of the tree stands in the text, as the target counts."""
        return len(self.context) + len(path)

    def forget_cache(self) -> None:
        """Nothing is cached any more; the pages are the caller's to free."""
        self.pages, self.places, self.cached = [], [], 0
        self.tree = self._new_tree()

    def _go_on(self, tokens: Sequence[int], chain: list[int], root: int | None) -> list[int]:
        """The text goes on with tokens, the first of which are the nodes of `chain`.

        `root` becomes that of the next tree. Returns which of the expanded nodes stay in the cache.
        """
        kept = {*chain, *(self.tree.below(root) if root is not None else ())}
        stay = [i for i, expanded in enumerate(self.tree.expanded) if expanded in kept]
        self._keep(stay)
        # A leaf of the chain may not have been run: the next pass does it with what follows.
        self.cached += len(set(chain) & set(self.tree.expanded))
        self.tree = self._new_tree() if root is None else self.tree.reroot(root)
        self.context += tokens
        return stay

    def _new_tree(self) -> DraftTree:
        return DraftTree(self.shape.max_budget)

    def _expandable(self, nodes: Iterable[int]) -> list[int]:
        """The best of some nodes whose children could still be accepted."""
        if self._deepest < 1 or not self.is_readable:
            return []
        if self.cached < len(self.context):
            return [ROOT]
        frontier = self.tree.frontier(self.shape.max_n_beams, self._in_reach(nodes))
        return frontier[: MAX_EXPANDED - len(self.tree.expanded)]

    @property
    def _deepest(self) -> int:
        """Depth of nodes that can be accepted; the bonus comes below them."""
        return self.limit - len(self.context) - 1

    def _in_reach(self, nodes: Iterable[int]) -> list[int]:
        """Those of some nodes whose children could still be accepted."""
        depths, deepest = self.tree.depths, self._deepest
        return [node for node in nodes if depths[node] < deepest]

    def _single(self) -> list[int]:
        """The best leaf in flight until its children are known, then its best child's subtree."""
        leaf, bonus = self._likeliest_end()
        run = {ROOT, *self.tree.expanded}
        way: list[int] = []  # to the leaf, as far as it has not been run
        while leaf not in run:
            way, leaf = [leaf, *way], self.tree.parents[leaf]
        if way:
            return way
        if bonus is None:
            return []
        below = self.tree.best_first(self.tree.below(bonus))
        return [bonus, *below[: self.tree.max_nodes]]

    def _likeliest_end(self) -> tuple[int, int | None]:
        """The sent leaf (or `ROOT`) that the walk is likeliest to end at, and its best child."""
        inner = {self.tree.parents[node] for node in self.sent.source}
        leaves = [node for node in self.sent.source if node not in inner]
        leaf = self.tree.best_first(leaves)[0] if leaves else ROOT
        children = self.tree.children(leaf)
        return leaf, self.tree.best_first(children)[0] if children else None

    def _foreseen(self, end: int, bonus: int) -> int | None:
        """The node for `bonus` under the end of the walk, if work below it is to be kept."""
        child = self.tree.child(end, bonus)
        match self.proactive:
            case Proactive.OFF:
                return None
            case Proactive.SINGLE if child != self._likeliest_end()[1]:
                return None
        return child if child in self.tree.expanded else None

    def _keep(self, stay: list[int]) -> None:
        """Of the places behind the text, keep these; some may still be waiting to be moved."""
        if not self.places:
            self.moved_from, self.places = self.cached, list(range(len(self.tree.expanded)))
        text = self.cached - self.moved_from
        self.places = self.places[:text] + [self.places[text + place] for place in stay]


@dataclass(frozen=True)
class Pass:
    """What one request wants of the next pass: expand these nodes, or run text for `ROOT`."""

    speculation: Speculation
    frontier: Sequence[int]

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache after the pass; for text, after its last one."""
        speculation = self.speculation
        nodes = 0 if self.is_text else len(speculation.tree.expanded) + len(self.frontier)
        return len(speculation.context) + nodes

    @property
    def is_text(self) -> bool:
        return self.frontier[0] == ROOT
