"""The trees of a step as columns on the device, and what comes of the tokens drawn at their rows.

Knows rows and pages, and not whose they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from runtime.model.engine import Engine, TreeRequest
from runtime.model.kv_cache import page_table
from runtime.model.staging import Layout
from specedge_kernels import build_tree, verify

Columns = dict[str, Tensor]  # by name, as `_layout` lists them
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "position")


class TreeColumns:
    """The columns of these trees, whose tokens are drawn by `sampling`, each [B]."""

    def __init__(self, trees: Sequence[TreeRequest], sampling: Mapping[str, np.ndarray]):
        self._trees, self._sampling = trees, sampling
        self._rows = [len(tree.tokens) for tree in trees]
        self._table = page_table([tree.pages for tree in trees])
        self.most_nodes = max(self._rows, default=0)
        self._words = max(-(-self.most_nodes // 64), 1)
        self.layout = _layout(sum(self._rows), self._words, *self._table.shape)

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        trees, sizes = self._trees, np.array(self._rows, np.int64)
        arrays["offsets"][:] = [*accumulate(self._rows, initial=0)]
        arrays["tokens"][:] = _column([tree.tokens for tree in trees])
        for name, column in self._sampling.items():
            arrays[name][:] = np.repeat(column, sizes)
        # on the host: it is done while the model still runs the step before
        parents = torch.from_numpy(_column([tree.parents for tree in trees]).astype(np.int32))
        offsets = torch.from_numpy(arrays["offsets"])
        ancestors, depth = build_tree(parents, offsets, self._words)
        arrays["ancestors"][:] = ancestors.numpy()
        prefix_lens = np.array([tree.prefix_len for tree in trees], np.int64)
        arrays["position"][:] = np.repeat(prefix_lens + 1, sizes) + depth.numpy()
        arrays["prefix_lens"][:], arrays["page_table"][:] = prefix_lens, self._table


def trees_of(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, ancestors and offsets, as `verify` takes them."""
    return columns["tokens"], columns["ancestors"], columns["offsets"]


def walk(
    engine: Engine, columns: Columns, target: Tensor, most_nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk each tree, of at most `most_nodes`, along the target's tokens [N] i64, and compact the
    cache: path, accepted lengths and bonus, as `verify` returns them."""
    path, accepted_lens, bonus = verify(*trees_of(columns), target, most_nodes)
    pages, prefix_lens = columns["page_table"], columns["prefix_lens"]
    engine.compact_verified(pages, prefix_lens, path, accepted_lens)
    return path, accepted_lens, bonus


@lru_cache(maxsize=64)
def _layout(rows: int, words: int, trees: int, pages: int) -> Layout:
    """The arrays of a verification: N rows, W words of a row's mask, B trees, M pages of one."""
    i32, i64, f32 = torch.int32, torch.int64, torch.float32
    return Layout(
        offsets=(i32, (trees + 1,)),
        tokens=(i64, (rows,)),
        ancestors=(i64, (rows, words)),
        temperature=(f32, (rows,)),
        top_k=(i32, (rows,)),
        top_p=(f32, (rows,)),
        min_p=(f32, (rows,)),
        seed=(i64, (rows,)),
        position=(i64, (rows,)),  # of the token that is drawn at the row
        prefix_lens=(i32, (trees,)),
        page_table=(i32, (trees, pages)),
    )


def _column(rows: Iterable[Sequence[int]]) -> np.ndarray:
    """The numbers of all rows; NumPy takes them several times as fast as torch does."""
    return np.fromiter(chain.from_iterable(rows), np.int64)
