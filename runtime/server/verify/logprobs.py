"""What the model thought of the tokens of a step, for the requests that want to know.

Of its own distribution: of the logits as they leave the model, before anything changes them.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.model.staging import Layout
from runtime.wire.messages import Logprobs
from specedge_kernels import token_logprobs


class TokenLogprobs(NamedTuple):
    """The log-probability of a token, and the likeliest ones in its place with theirs."""

    logprob: float
    top_ids: Sequence[int]
    top_logprobs: Sequence[float]


class Wanted:
    """Which rows of a step's trees, of so many rows each; wanted is what the Open of each says."""

    def __init__(self, wanted: Sequence[int], sizes: Sequence[int]):
        self.wanted, self.sizes = wanted, sizes
        ends = [*accumulate(sizes, initial=0)]
        rows = [range(ends[i], ends[i + 1]) for i, one in enumerate(wanted) if one]
        self._rows = [row for tree in rows for row in tree]
        self.layout = Layout(rows=(torch.int64, (len(self._rows),)))

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        arrays["rows"][:] = self._rows

    def of_targets(self, raw: Tensor, target: Tensor) -> Tensor:
        """Those of the target's token [R] i64 after each row [R, 1 + 2 n] f64, which holds ids too:
        the token's own, the ids of the n likeliest, and theirs.

        raw [R, V] f32: the logits of these rows. A row that has no token (-1) has something of no
        meaning.
        """
        most = min(max(self.wanted) - 1, raw.shape[1])
        own, ids, values = token_logprobs(raw, target, most)
        return torch.cat((own[:, None].double(), ids.double(), values.double()), dim=1)

    def by_tree(self, rows: Tensor) -> list[list[TokenLogprobs]]:
        """What `of_targets` gave, for each tree; none where none are wanted."""
        most, left = (rows.shape[1] - 1) // 2, iter(rows.tolist())
        told: list[list[TokenLogprobs]] = []
        for size, wanted in zip(self.sizes, self.wanted, strict=True):
            n = min(wanted - 1, most)
            of_tree = [next(left) for _ in range(size)] if wanted else []
            told.append(
                [
                    TokenLogprobs(own, [int(one) for one in rest[:n]], rest[most : most + n])
                    for own, *rest in of_tree
                ]
            )
        return told


def message(number: int, told: Sequence[TokenLogprobs]) -> Logprobs:
    """What an edge hears of the tokens of a verdict."""
    return Logprobs(
        number,
        tuple(one.logprob for one in told),
        tuple(token for one in told for token in one.top_ids),
        tuple(value for one in told for value in one.top_logprobs),
    )
