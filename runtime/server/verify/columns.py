"""The trees of a step as columns on the device, and what comes of the tokens drawn at their rows.

Knows rows and pages, and not whose they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from runtime.model import staging
from runtime.model.engine import Engine, TreeRequest
from runtime.model.kv_cache import page_table
from runtime.model.staging import Layout
from specedge_kernels import build_tree, verify

Columns = dict[str, Tensor]  # by name, as `_layout` lists them
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed", "position")


def columns_of(
    trees: Sequence[TreeRequest], sampling: Mapping[str, np.ndarray], device: torch.device
) -> Columns:
    """The columns of these trees, whose tokens are drawn by `sampling`, each [B]; in one upload."""
    rows = [len(tree.tokens) for tree in trees]
    sizes, words = np.array(rows, np.int64), max(-(-max(rows, default=0) // 64), 1)
    table = page_table([tree.pages for tree in trees])
    layout = _layout(sum(rows), words, *table.shape)
    buffer, arrays = layout.host_buffer(device)
    arrays["offsets"][:] = [*accumulate(rows, initial=0)]
    arrays["tokens"][:] = _column([tree.tokens for tree in trees])
    for name, column in sampling.items():
        arrays[name][:] = np.repeat(column, sizes)
    # on the host: it is done while the model still runs the step before
    parents = torch.from_numpy(_column([tree.parents for tree in trees]).astype(np.int32))
    ancestors, depth = build_tree(parents, torch.from_numpy(arrays["offsets"]), words)
    arrays["ancestors"][:] = ancestors.numpy()
    prefix_lens = np.array([tree.prefix_len for tree in trees], np.int64)
    arrays["position"][:] = np.repeat(prefix_lens + 1, sizes) + depth.numpy()
    arrays["prefix_lens"][:], arrays["page_table"][:] = prefix_lens, table
    return layout.views(staging.upload(buffer, device))


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
