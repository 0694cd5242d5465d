"""Random trees of one size, or chains, for every request of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specedge_kernels import reference


@dataclass(frozen=True)
class Trees:
    parents: Tensor  # [N] int32
    offsets: Tensor  # [B + 1] int32
    ancestors: Tensor  # [N, W] int64
    depth: Tensor  # [N] int32


def make_trees(batch: int, nodes: int, seed: int, chain: bool = False) -> Trees:
    """Node 0 is the root; any other hangs under a random earlier one, or under the last."""
    draws = torch.rand(batch, nodes, generator=torch.manual_seed(seed))
    parents = (draws * torch.arange(nodes)).int()
    if chain:
        parents[:] = torch.arange(-1, nodes - 1)
    parents[:, 0] = -1
    parents = parents.flatten()
    offsets = torch.arange(batch + 1, dtype=torch.int32) * nodes
    return Trees(parents, offsets, *reference.build_tree(parents, offsets, -(-nodes // 64)))
