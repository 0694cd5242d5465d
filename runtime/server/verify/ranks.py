"""A step of a model that several ranks share: how rank 0 tells of it, and what the others do.

All run the same rows, each on its part. A token is drawn by the ranks together: each looks for the
best among its own tokens, by noise that depends on the token's id and not on who draws, and the
best of these is the token that one rank would have drawn, to the bit. Where limits, rules, masks or
log-probabilities need whole rows of logits, rank 0 is given them and tells what it drew.
Knows nothing of requests.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.model.engine import Engine, TreeRequest
from runtime.model.parallel import Ranks, part
from runtime.model.staging import Parcel
from runtime.server.verify.columns import Columns, TreeColumns, walk
from specedge_kernels import draft_topk
from specedge_kernels.reference import FLOAT_MAX, gumbel

_SIZES = 6  # numbers that a row's lists are told with, and its adapter
_SAMPLING = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seed": np.int64,
}


class Told(NamedTuple):
    """What all ranks need to know of a step; its trees are the last of its rows."""

    rows: Sequence[TreeRequest]
    sampling: Mapping[str, np.ndarray]  # how each tree's tokens are drawn, by column, each [B]
    needs_whole_rows: bool = False  # of logits, at rank 0

    @property
    def trees(self) -> Sequence[TreeRequest]:
        n_trees = len(self.sampling["seed"]) if self.sampling else 0
        return self.rows[len(self.rows) - n_trees :]

    def packed(self) -> Tensor:
        """All of it in one tensor [bytes] u8."""
        sizes = [
            (
                len(r.tokens),
                len(r.parents),
                len(r.pages),
                len(r.logit_rows),
                r.prefix_len,
                r.adapter,
            )
            for r in self.rows
        ]
        lists = chain.from_iterable((r.tokens, r.parents, r.pages, r.logit_rows) for r in self.rows)
        numbers = chain(
            (len(self.rows), len(self.trees), self.needs_whole_rows),
            chain.from_iterable(sizes),
            chain.from_iterable(lists),
        )
        columns = [self.sampling[name].view(np.int32) for name in _SAMPLING if self.sampling]
        return torch.from_numpy(
            np.concatenate([np.fromiter(numbers, np.int32), *columns]).view(np.uint8)
        )

    @classmethod
    def unpacked(cls, message: Tensor) -> "Told":
        numbers = message.numpy().view(np.int32)
        n_rows, n_trees, whole = numbers[:3].tolist()
        end = 3 + n_rows * _SIZES
        rows: list[TreeRequest] = []
        for *sizes, prefix_len, adapter in numbers[3:end].reshape(-1, _SIZES).tolist():
            ends = np.cumsum([end, *sizes]).tolist()
            tokens, parents, own_pages, logit_rows = (
                numbers[first:last].tolist() for first, last in pairwise(ends)
            )
            rows.append(
                TreeRequest(tokens, parents, prefix_len, own_pages, logit_rows, adapter=adapter)
            )
            end = ends[-1]
        return cls(rows, _sampling(numbers[end:], n_trees) if n_trees else {}, bool(whole))


def leading(ranks: Ranks | None, told: Told) -> AbstractContextManager[None]:
    """Where a step is run, by all ranks if there are several."""
    return nullcontext() if ranks is None else ranks.leading(told.packed())


def follow(engine: Engine, messages: Iterator[Tensor]) -> None:
    """Do what rank 0 tells, step by step, until it stops."""
    for message in messages:
        _run(engine, Told.unpacked(message))


@torch.inference_mode()
def _run(engine: Engine, told: Told) -> None:
    assert engine.ranks is not None, "a model that nobody shares has no followers"
    rows, trees = engine.prepare(told.rows), TreeColumns(told.trees, told.sampling)
    parcel = Parcel(engine.kv.device, {"rows": rows, "columns": trees})
    parcel.send()
    logits = engine.run(rows, parcel)
    if not told.trees:
        return
    columns = parcel.tensors("columns")
    if told.needs_whole_rows:
        engine.ranks.columns(logits, engine.model.vocab_size)
        target = engine.ranks.same(torch.empty_like(columns["tokens"]))
    else:
        target = draw(engine.ranks, logits, columns, engine.model.vocab_size)
    walk(engine, columns, target, trees.most_nodes)


def draw(ranks: Ranks, logits: Tensor, columns: Columns, vocab_size: int) -> Tensor:
    """`target_tokens` without limits [N] i64, of the columns [N, W] of logits of each rank.

    Every sum is rounded as there, so that ties and the last bits are decided alike.
    """
    seed, position = columns["seed"], columns["position"]
    first, last = part(ranks.rank, ranks.size, vocab_size)
    heat = columns["temperature"].clamp(max=FLOAT_MAX)
    tops = ranks.of_all(logits.amax(1)).amax(0)  # NaN if any is
    is_valid, is_drawn = tops.isfinite(), (heat > 0) & (tops / heat).isfinite()
    heat = torch.where(is_drawn, heat, 1)
    lead = torch.where(is_drawn, tops / heat, 0)
    scaled = torch.where(is_valid[:, None], logits / heat[:, None] - lead[:, None], 0)
    ids = torch.arange(first, last, device=logits.device)
    # with a temperature of 1 it ranks by the number and the noise of the token's id
    best, _ = draft_topk(scaled, 1, is_drawn.float(), seed, position, ids)
    noise = torch.where(is_drawn, gumbel(seed, position, best[:, 0]), 0)
    score = scaled.gather(1, best - first)[:, 0] + noise
    mine = torch.cat((score.view(torch.int32), best[:, 0].int()))
    scores, tokens = ranks.of_all(mine).chunk(2, 1)
    scores = scores.contiguous().view(torch.float32)
    winners = torch.where(scores == scores.amax(0), tokens, vocab_size)
    return torch.where(is_valid, winners.amin(0), -1).long()


def _sampling(numbers: np.ndarray, n_trees: int) -> dict[str, np.ndarray]:
    columns, first = {}, 0
    for name, dtype in _SAMPLING.items():
        last = first + n_trees * np.dtype(dtype).itemsize // 4
        columns[name] = numbers[first:last].copy().view(dtype)
        first = last
    return columns
