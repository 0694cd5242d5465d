"""From requests to the tensors of one forward pass.

A prompt chunk is a chain, plain decoding is a tree of one node, and drafting is a tree whose
first nodes are cached already: every pass has this one form. A batch can be padded to a given
size with requests of nobody. Knows no weights and no pages' fate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.model.staging import Layout
from specedge_kernels import build_tree

MAX_TREE_NODES = 256  # four mask words; chains may be longer


@dataclass(frozen=True)
class TreeRequest:
    """What one request brings to one forward pass."""

    tokens: Sequence[int]  # ids of the new nodes, in node order
    parents: Sequence[int]  # of all nodes, cached ones first; -1 stands under the prefix
    prefix_len: int  # tokens of accepted context in the cache, visible to every node
    pages: Sequence[int]  # must hold prefix_len + len(parents) tokens
    logit_rows: Sequence[int]  # which new nodes' logits are wanted, indices into tokens

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache after the pass."""
        return self.prefix_len + len(self.parents)


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


@dataclass(frozen=True)
class BatchSize:
    """The sizes that fix every shape of a pass."""

    rows: int  # N
    nodes: int  # of all trees, cached ones included
    requests: int  # B
    pages: int  # M
    words: int  # W
    logits: int  # rows whose logits are wanted

    @classmethod
    def of(cls, requests: Sequence[TreeRequest], page_size: int) -> "BatchSize":
        """The least size that holds the requests."""
        return cls(
            rows=sum(len(r.tokens) for r in requests),
            nodes=sum(len(r.parents) for r in requests),
            requests=len(requests),
            pages=max(-(-r.n_tokens // page_size) for r in requests),
            words=mask_words(requests),
            logits=sum(len(r.logit_rows) for r in requests),
        )

    def layout(self) -> Layout:
        """The arrays that `fill` writes and `tree_batch` reads."""
        return _layout(self)


@lru_cache(maxsize=64)
def _layout(size: BatchSize) -> Layout:
    i32, i64 = torch.int32, torch.int64
    return Layout(
        tokens=(i64, (size.rows,)),
        slots=(i64, (size.rows,)),
        prefixes=(i64, (size.rows,)),  # of the row's request
        nodes=(i64, (size.rows,)),  # which of all nodes the row is
        logit_rows=(i64, (size.logits,)),
        parents=(i32, (size.nodes,)),
        node_offsets=(i32, (size.requests + 1,)),
        offsets=(i32, (size.requests + 1,)),
        prefix_lens=(i32, (size.requests,)),
        n_nodes=(i32, (size.requests,)),
        page_table=(i32, (size.requests, size.pages)),
    )


def fill(arrays: Mapping[str, np.ndarray], requests: Sequence[TreeRequest], page_size: int) -> None:
    """Write requests, checked by `check_request`, into the arrays of a size that holds them.

    What is larger than the requests is filled up by one more, whose rows are a chain that nobody
    reads and that is written nowhere, and by empty ones.
    """
    columns: dict[str, list[Any]] = {name: [] for name in arrays}
    columns["offsets"], columns["node_offsets"] = [0], [0]
    batch, n_pages = arrays["page_table"].shape
    for request in requests:
        _add(columns, request, page_size, n_pages)
    for _ in range(len(requests), batch):
        rows = len(arrays["tokens"]) - len(columns["tokens"])
        nodes = len(arrays["parents"]) - len(columns["parents"])
        spare = TreeRequest([0] * rows, range(-1, nodes - 1), 0, [0] * n_pages, ())
        _add(columns, spare, page_size, n_pages)
        columns["slots"][len(columns["slots"]) - rows :] = [-1] * rows
    columns["logit_rows"] += [0] * (len(arrays["logit_rows"]) - len(columns["logit_rows"]))
    for name, column in columns.items():
        arrays[name][:] = column


def _add(columns: dict[str, list[Any]], request: TreeRequest, page_size: int, n_pages: int) -> None:
    """One more request, and its new nodes, which are the last ones of its tree."""
    first_row, first_node = len(columns["tokens"]), len(columns["parents"])
    n_nodes, prefix_len, pages = len(request.parents), request.prefix_len, request.pages
    new = range(n_nodes - len(request.tokens), n_nodes)
    columns["tokens"] += request.tokens
    columns["parents"] += request.parents
    columns["nodes"] += [first_node + node for node in new]
    columns["prefixes"] += [prefix_len] * len(new)
    columns["slots"] += [
        pages[place // page_size] * page_size + place % page_size
        for place in range(prefix_len + new.start, prefix_len + n_nodes)
    ]
    columns["logit_rows"] += [first_row + row for row in request.logit_rows]
    columns["offsets"].append(first_row + len(new))
    columns["node_offsets"].append(first_node + n_nodes)
    columns["prefix_lens"].append(prefix_len)
    columns["n_nodes"].append(n_nodes)
    needed = -(-request.n_tokens // page_size)
    columns["page_table"].append([*pages[:needed], *[0] * (n_pages - needed)])


def tree_batch(arrays: Mapping[str, Tensor], words: int) -> TreeBatch:
    """The batch of filled arrays; waits for nothing, so that it can be part of a CUDA graph."""
    ancestors, depth = build_tree(arrays["parents"], arrays["node_offsets"], words)
    if len(arrays["nodes"]) < len(depth):  # else all nodes are new
        ancestors, depth = ancestors[arrays["nodes"]], depth[arrays["nodes"]]
    return TreeBatch(
        tokens=arrays["tokens"],
        positions=arrays["prefixes"] + depth,
        slots=arrays["slots"],
        page_table=arrays["page_table"],
        prefix_lens=arrays["prefix_lens"],
        n_nodes=arrays["n_nodes"],
        offsets=arrays["offsets"],
        ancestors=ancestors,
        depth=depth,
        wanted=arrays["logit_rows"],
    )


def mask_words(requests: Sequence[TreeRequest]) -> int:
    """64-bit words of a node's mask: enough for the largest tree that is not a chain."""
    largest = max((len(r.parents) for r in requests if not _is_chain(r.parents)), default=0)
    return 1 if largest <= 64 else 2 if largest <= 128 else 4


def check_request(
    request: TreeRequest, vocab_size: int, max_context: int, n_pages: int, page_size: int
) -> None:
    """Raises ValueError with expected and got if the pass would read or write a wrong place."""
    n_new, n_nodes = len(request.tokens), len(request.parents)
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
    # A tree has more nodes than positions: near the end of the context its nodes need not fit,
    # only the tokens that can still be accepted, and those are the caller's to count.
    room = max_context if _is_chain(request.parents) else max_context + MAX_TREE_NODES
    if request.n_tokens > room:
        raise ValueError(
            f"a prefix of {request.prefix_len} and {n_nodes} nodes are longer than the model's "
            f"context of {max_context} tokens"
        )
    _check_range("token", request.tokens, 0, vocab_size)
    _check_range("page", request.pages, 0, n_pages)
    _check_range("logit row", request.logit_rows, 0, n_new)
    _check_parents(request.parents)


def _check_range(what: str, values: Sequence[int], low: int, end: int) -> None:
    if len(values) and not (low <= min(values) and max(values) < end):
        wrong = next(value for value in values if not low <= value < end)
        raise ValueError(f"{what} {wrong} is out of range; expected {low} to {end - 1}")


def _check_parents(parents: Sequence[int]) -> None:
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} has parent {parent}; expected -1 or an earlier node")
    if len(parents) > MAX_TREE_NODES and not _is_chain(parents):
        raise ValueError(
            f"a tree of {len(parents)} nodes; expected at most {MAX_TREE_NODES}, or a chain"
        )


def _is_chain(parents: Sequence[int]) -> bool:
    return [*parents] == [*range(-1, len(parents) - 1)]
