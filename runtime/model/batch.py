"""From requests to the tensors of one forward pass.

A prompt chunk is a chain, plain decoding is a tree of one node, and drafting is a tree whose
first nodes are cached already: every pass has this one form. A batch can be padded to a given
size with requests of nobody. Knows no weights and no pages' fate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from runtime.model.staging import Layout
from specedge_kernels import build_tree

NO_ADAPTER = -1
MAX_TREE_NODES = 256  # four mask words; chains may be longer


@dataclass(slots=True)  # not frozen: a step makes many, and freezing doubles what one costs
class TreeRequest:
    """What one request brings to one forward pass."""

    tokens: Sequence[int]  # ids of the new nodes, in node order
    parents: Sequence[int]  # of all nodes, cached ones first; -1 stands under the prefix
    prefix_len: int  # tokens of accepted context in the cache, visible to every node
    pages: Sequence[int]  # must hold prefix_len + len(parents) tokens
    logit_rows: Sequence[int]  # which new nodes' logits are wanted, indices into tokens
    adapter: int = NO_ADAPTER  # which of the model's all its rows have

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache after the pass."""
        return self.prefix_len + len(self.parents)


@dataclass(frozen=True)
class AdaptedRows:
    """The rows of a pass that have an adapter, and which."""

    rows: Tensor  # [A] i64
    sets: Tensor  # [A, 1] i32


@dataclass(frozen=True)
class TreeBatch:
    """The tensors of one pass; letters as in specedge_kernels, N counts new nodes only."""

    tokens: Tensor  # [N] i64
    positions: Tensor  # [N] i64, prefix + depth
    slots: Tensor  # [N] i64, page * S + offset; -1 is written nowhere
    page_table: Tensor  # [B, M] i32
    prefix_lens: Tensor  # [B] i32
    n_nodes: Tensor  # [B] i32, cached nodes included
    offsets: Tensor  # [B + 1] i32
    ancestors: Tensor  # [N, W] i64
    depth: Tensor  # [N] i32
    wanted: Tensor | None = None  # [R] i64, rows whose hidden states the pass gives, None for all
    adapted: AdaptedRows | None = None  # of all rows; None where none has an adapter
    adapted_wanted: AdaptedRows | None = None  # of the wanted rows, by their place among these


@dataclass(frozen=True)
class BatchSize:
    """The sizes that fix every shape of a pass."""

    rows: int  # N
    requests: int  # B
    pages: int  # M
    words: int  # W
    logits: int  # rows whose logits are wanted
    adapted: int = 0  # rows that have an adapter
    adapted_logits: int = 0  # of these, rows whose logits are wanted

    def layout(self) -> Layout:
        """The arrays that `Joined.fill` writes and `tree_batch` reads."""
        return _layout(self)


@lru_cache(maxsize=64)
def _layout(size: BatchSize) -> Layout:
    i32, i64 = torch.int32, torch.int64
    return Layout(
        tokens=(i64, (size.rows,)),
        drawn=(i64, (size.rows,)),  # which of the drawn tokens the row has; -1 for its own
        positions=(i64, (size.rows,)),
        slots=(i64, (size.rows,)),
        logit_rows=(i64, (size.logits,)),
        ancestors=(i64, (size.rows, size.words)),
        depth=(i32, (size.rows,)),
        offsets=(i32, (size.requests + 1,)),
        prefix_lens=(i32, (size.requests,)),
        n_nodes=(i32, (size.requests,)),
        page_table=(i32, (size.requests, size.pages)),
        adapted_rows=(i64, (size.adapted,)),
        adapted_sets=(i32, (size.adapted, 1)),
        adapted_wanted_rows=(i64, (size.adapted_logits,)),
        adapted_wanted_sets=(i32, (size.adapted_logits, 1)),
    )


class Joined:
    """The requests of one pass as arrays: one after the other.

    A pass has a thousand nodes, so nothing here loops over them in Python.
    """

    def __init__(self, requests: Sequence[TreeRequest], page_size: int):
        self.requests, self.page_size = requests, page_size
        self.new = _column(len(r.tokens) for r in requests)
        self.nodes = _column(len(r.parents) for r in requests)
        self.prefix = _column(r.prefix_len for r in requests)
        self.logits = _column(len(r.logit_rows) for r in requests)
        self.tokens = _column(chain.from_iterable(r.tokens for r in requests))
        self.parents = _column(chain.from_iterable(r.parents for r in requests))
        self.logit_rows = _column(chain.from_iterable(r.logit_rows for r in requests))
        self.adapters = _column(r.adapter for r in requests)
        self.first_rows = _begins(self.new)  # of each request
        # of each node its place among those of its request
        self.place = np.arange(len(self.parents)) - np.repeat(_begins(self.nodes), self.nodes)
        steps = self.parents != self.place - 1  # where a tree is not a chain
        self.is_chain = np.bincount(self._of_nodes()[steps], minlength=len(requests)) == 0

    def size(self) -> BatchSize:
        """The least size that holds the requests."""
        largest = self.nodes[~self.is_chain].max(initial=0)
        has_adapter = self.adapters != NO_ADAPTER
        return BatchSize(
            rows=len(self.tokens),
            requests=len(self.requests),
            pages=int(self._pages().max(initial=0)),
            words=1 if largest <= 64 else 2 if largest <= 128 else 4,
            logits=len(self.logit_rows),
            adapted=int(self.new[has_adapter].sum()),
            adapted_logits=int(self.logits[has_adapter].sum()),
        )

    def check(self, vocab_size: int, max_context: int, n_pages: int, n_adapters: int = 0) -> None:
        """Raises ValueError with expected and got if the pass would read or write a wrong place."""
        held = _column(len(r.pages) for r in self.requests)
        length = self.prefix + self.nodes
        # A tree has more nodes than positions: near the end of the context its nodes need not fit,
        # only the tokens that can still be accepted, and those are the caller's to count.
        room = np.where(self.is_chain, max_context, max_context + MAX_TREE_NODES)
        right = (
            (self.new >= 1).all()
            and (self.new <= self.nodes).all()
            and (self.prefix >= 0).all()
            and (self._pages() <= held).all()
            and (length <= room).all()
            and (self.is_chain | (self.nodes <= MAX_TREE_NODES)).all()
            and _lie_in(self.tokens, 0, vocab_size)
            and _lie_in(self.logit_rows, 0, np.repeat(self.new, self.logits))
            and _lie_in(self.parents, -1, self.place)
            and _lie_in(self.adapters, NO_ADAPTER, n_adapters)
            and _lie_in(_column(chain.from_iterable(r.pages for r in self.requests)), 0, n_pages)
        )
        if not right:  # who is wrong, and in what, is looked for only now
            for request in self.requests:
                _complain(request, vocab_size, max_context, n_pages, n_adapters, self.page_size)
            raise AssertionError("a batch was found wrong, and none of its requests")

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the requests into the arrays of a size that holds them.

        What is larger than they are is filled up by one more, whose rows are a chain that nobody
        reads and that is written nowhere, and by empty ones. No row has a token of the step before:
        to whom that gives one, its place among those drawn is written to `drawn` later.
        """
        rows, page_size = len(self.tokens), self.page_size
        batch, spare = len(arrays["n_nodes"]), len(arrays["tokens"]) - rows
        new = _filled_up(self.new, batch, spare)
        nodes = _filled_up(self.nodes, batch, spare)
        prefix = _filled_up(self.prefix, batch)
        table = arrays["page_table"]
        table.fill(0)
        for row, request, used in zip(table, self.requests, self._pages().tolist(), strict=False):
            row[:used] = request.pages[:used]
        arrays["tokens"][:rows], arrays["tokens"][rows:] = self.tokens, 0
        arrays["drawn"].fill(-1)
        arrays["offsets"][0] = 0
        np.cumsum(new, out=arrays["offsets"][1:])
        # the new nodes are the last ones of their tree
        owner = np.repeat(np.arange(batch), new)
        node = np.arange(len(owner)) - np.repeat(_begins(new) - (nodes - new), new)
        place = prefix[owner] + node
        parents = np.concatenate((self.parents, np.arange(-1, spare - 1)))
        ancestors, depth = _trees(parents, nodes, arrays["ancestors"].shape[1])
        if len(owner) < len(depth):  # else all nodes are new
            which = _begins(nodes)[owner] + node
            ancestors, depth = ancestors[which], depth[which]
        arrays["ancestors"][:], arrays["depth"][:] = ancestors, depth
        np.add(prefix[owner], depth, out=arrays["positions"])
        arrays["slots"][:] = table[owner, place // page_size] * page_size + place % page_size
        arrays["slots"][rows:] = -1
        wanted = np.repeat(self.first_rows, self.logits) + self.logit_rows
        arrays["logit_rows"][: len(wanted)], arrays["logit_rows"][len(wanted) :] = wanted, 0
        arrays["prefix_lens"][:], arrays["n_nodes"][:] = prefix, nodes
        if len(arrays["adapted_rows"]):
            self._fill_adapted(arrays, "adapted", self.new)
            self._fill_adapted(arrays, "adapted_wanted", self.logits)

    def _fill_adapted(
        self, arrays: Mapping[str, np.ndarray], name: str, counts: np.ndarray
    ) -> None:
        """Which of so many rows of each request have an adapter, and which one."""
        sets = np.repeat(self.adapters, counts)
        which = np.flatnonzero(sets != NO_ADAPTER)
        arrays[f"{name}_rows"][:], arrays[f"{name}_sets"][:, 0] = which, sets[which]

    def _of_nodes(self) -> np.ndarray:
        """Of each node its request."""
        return np.repeat(np.arange(len(self.nodes)), self.nodes)

    def _pages(self) -> np.ndarray:
        """Pages that each request uses."""
        pages: np.ndarray = -(-(self.prefix + self.nodes) // self.page_size)
        return pages


@dataclass(frozen=True)
class Rows:
    """The rows of one pass, laid out at a size that holds them."""

    joined: Joined
    size: BatchSize

    @property
    def layout(self) -> Layout:
        return self.size.layout()

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """As `Joined.fill`."""
        self.joined.fill(arrays)


def take_drawn(arrays: Mapping[str, Tensor], tokens: Tensor) -> None:
    """Put the drawn tokens [B] i64 into their rows, on the device.

    A row that would have -1 has token 0: nobody reads what comes of it.
    """
    which, own = arrays["drawn"], arrays["tokens"]
    # what -1 takes, which is the last of them, is not looked at
    torch.where(which < 0, own, tokens.clamp(min=0).take(which), out=own)


def tree_batch(arrays: Mapping[str, Tensor]) -> TreeBatch:
    """The batch of filled arrays."""
    return TreeBatch(
        tokens=arrays["tokens"],
        positions=arrays["positions"],
        slots=arrays["slots"],
        page_table=arrays["page_table"],
        prefix_lens=arrays["prefix_lens"],
        n_nodes=arrays["n_nodes"],
        offsets=arrays["offsets"],
        ancestors=arrays["ancestors"],
        depth=arrays["depth"],
        wanted=arrays["logit_rows"],
        adapted=_adapted(arrays, "adapted"),
        adapted_wanted=_adapted(arrays, "adapted_wanted"),
    )


def _adapted(arrays: Mapping[str, Tensor], name: str) -> AdaptedRows | None:
    rows = arrays[f"{name}_rows"]
    return AdaptedRows(rows, arrays[f"{name}_sets"]) if len(rows) else None


def _column(numbers: Iterable[int]) -> np.ndarray:
    return np.fromiter(numbers, np.int64)


def _begins(sizes: np.ndarray) -> np.ndarray:
    """Where each of consecutive pieces of these sizes begins."""
    begins: np.ndarray = np.cumsum(sizes) - sizes
    return begins


def _filled_up(sizes: np.ndarray, count: int, spare: int = 0) -> np.ndarray:
    """`count` sizes, of which the first new one is `spare`."""
    filled = np.zeros(count, np.int64)
    filled[: len(sizes)] = sizes
    filled[len(sizes) : len(sizes) + 1] = spare
    return filled


def _trees(parents: np.ndarray, sizes: np.ndarray, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Ancestors and depth of the nodes of trees of these sizes, as `build_tree` gives them."""
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    of_host = torch.from_numpy(parents.astype(np.int32)), torch.from_numpy(offsets)
    ancestors, depth = build_tree(*of_host, words)
    return ancestors.numpy(), depth.numpy()


def _lie_in(values: np.ndarray, low: int, end: "int | np.ndarray") -> bool:
    return bool(((values >= low) & (values < end)).all())


def _complain(
    request: TreeRequest,
    vocab_size: int,
    max_context: int,
    n_pages: int,
    n_adapters: int,
    page_size: int,
) -> None:
    """Raises ValueError for the first thing that is wrong with one request, if anything is."""
    n_new, n_nodes = len(request.tokens), len(request.parents)
    is_chain = [*request.parents] == [*range(-1, n_nodes - 1)]
    if not 1 <= n_new <= n_nodes:
        raise ValueError(
            f"a request brings {n_new} new tokens and {n_nodes} parents; expected at least one "
            "token and a parent for every node, cached ones included"
        )
    if request.prefix_len < 0:
        raise ValueError(f"prefix_len is {request.prefix_len}; expected at least 0")
    if request.n_tokens > len(request.pages) * page_size:
        raise ValueError(
            f"{len(request.pages)} pages of {page_size} tokens cannot hold a prefix of "
            f"{request.prefix_len} and {n_nodes} nodes"
        )
    if request.n_tokens > max_context + (0 if is_chain else MAX_TREE_NODES):
        raise ValueError(
            f"a prefix of {request.prefix_len} and {n_nodes} nodes are longer than the model's "
            f"context of {max_context} tokens"
        )
    _check_range("token", request.tokens, 0, vocab_size)
    _check_range("page", request.pages, 0, n_pages)
    _check_range("adapter", [request.adapter], NO_ADAPTER, n_adapters)
    _check_range("logit row", request.logit_rows, 0, n_new)
    for node, parent in enumerate(request.parents):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} has parent {parent}; expected -1 or an earlier node")
    if n_nodes > MAX_TREE_NODES and not is_chain:
        raise ValueError(
            f"a tree of {n_nodes} nodes; expected at most {MAX_TREE_NODES}, or a chain"
        )


def _check_range(what: str, values: Sequence[int], low: int, end: int) -> None:
    for value in values:
        if not low <= value < end:
            raise ValueError(f"{what} {value} is out of range; expected {low} to {end - 1}")
