"""From requests to the tensors of one forward pass.

A prompt chunk is a chain, plain decoding is a tree of one node, and drafting is a tree whose
first nodes are cached already: every pass has this one form. Knows no weights and no pages' fate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.model.kv_cache import page_table
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
    slots: Tensor  # [N] i64, page * S + offset
    page_table: Tensor  # [B, M] i32
    prefix_lens: Tensor  # [B] i32
    n_nodes: Tensor  # [B] i32, cached nodes included
    offsets: Tensor  # [B + 1] i32
    ancestors: Tensor  # [N, W] i64
    depth: Tensor  # [N] i32
    logit_rows: Tensor  # [R] i64, rows of the batch


def build_batch(
    requests: Sequence[TreeRequest], page_size: int, device: torch.device | str
) -> TreeBatch:
    """Pack requests, checked by `check_request`, into tensors. At least one request."""
    n_new = np.array([len(r.tokens) for r in requests])
    n_nodes = np.array([len(r.parents) for r in requests])
    prefix_lens = np.array([r.prefix_len for r in requests])
    offsets = np.concatenate(([0], np.cumsum(n_new)))
    tree_offsets = np.concatenate(([0], np.cumsum(n_nodes)))
    parents = np.concatenate([np.asarray(r.parents, dtype=np.int32) for r in requests])
    table = page_table([r.pages[: -(-r.n_tokens // page_size)] for r in requests])

    # the new nodes are the last ones of each tree; `node` is their index inside it
    owner = np.repeat(np.arange(len(requests)), n_new)
    node = np.arange(offsets[-1]) - offsets[owner] + (n_nodes - n_new)[owner]
    place = prefix_lens[owner] + node
    slots = table[owner, place // page_size].astype(np.int64) * page_size + place % page_size
    logit_rows = [
        row + first
        for r, first in zip(requests, offsets.tolist(), strict=False)
        for row in r.logit_rows
    ]

    def tensor(array: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array).to(device, dtype, non_blocking=True)

    ancestors, depth = build_tree(
        tensor(parents, torch.int32), tensor(tree_offsets, torch.int32), mask_words(requests)
    )
    rows = tensor(tree_offsets[owner] + node, torch.int64)
    depth = depth[rows]
    return TreeBatch(
        tokens=tensor(np.concatenate([np.asarray(r.tokens) for r in requests]), torch.int64),
        positions=tensor(prefix_lens[owner], torch.int64) + depth,
        slots=tensor(slots, torch.int64),
        page_table=tensor(table, torch.int32),
        prefix_lens=tensor(prefix_lens, torch.int32),
        n_nodes=tensor(n_nodes, torch.int32),
        offsets=tensor(offsets, torch.int32),
        ancestors=ancestors[rows],
        depth=depth,
        logit_rows=tensor(logit_rows, torch.int64),
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
    array, nodes = np.asarray(parents), np.arange(len(parents))
    wrong = np.flatnonzero((array < -1) | (array >= nodes))
    if wrong.size:
        node = int(wrong[0])
        raise ValueError(f"node {node} has parent {parents[node]}; expected -1 or an earlier node")
    if len(parents) > MAX_TREE_NODES and not _is_chain(parents):
        raise ValueError(
            f"a tree of {len(parents)} nodes; expected at most {MAX_TREE_NODES}, or a chain"
        )


def _is_chain(parents: Sequence[int]) -> bool:
    return bool((np.asarray(parents) == np.arange(-1, len(parents) - 1)).all())
