"""One verification step: a batch of requests in, a verdict or a reason for each out.

Reads requests and never changes them: the caller applies the outcomes, so a step that fails can be
tried again request by request. Knows nothing of sockets, clocks or scheduling.
Source: sample-and-match with counter-based noise; SpecInfer (arXiv:2305.09781) for tree
verification in one pass, Gumbel-max coupling as in arXiv:2408.07978.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from runtime.model.engine import Engine, TreeRequest
from runtime.server.request import Request
from runtime.server.schedule.step import Work
from specedge_kernels import build_tree, target_tokens, verify

log = logging.getLogger(__name__)

MOST_TOP_K = 2**31 - 1  # that the kernels can be told; no vocabulary is as large


@dataclass(frozen=True)
class Verified:
    """The walk along the target's tokens: `path` of node numbers from the root (0), and the bonus.

    The KV of the path already lies in order behind the prefix.
    """

    request: Request
    path: list[int]
    bonus: int


@dataclass(frozen=True)
class Failed:
    """The request cannot go on; its batch mates are not affected."""

    request: Request
    sentence: str


Outcome = Verified | Failed


def verify_batch(engine: Engine, batch: Sequence[Work]) -> list[Outcome]:
    """Run one step: an outcome for each tree, and for each chunk that failed.

    A batch that raises is run again one request at a time.
    """
    try:
        return _step(engine, batch)
    except Exception as error:  # whatever one request does must not reach its batch mates
        log.exception("a step of %d requests failed", len(batch))
        if len(batch) == 1:
            return [Failed(batch[0].request, f"the server failed on this request: {error}")]
        return [outcome for work in batch for outcome in verify_batch(engine, [work])]


def _step(engine: Engine, batch: Sequence[Work]) -> list[Outcome]:
    # A tree may attend to a chunk of its own prompt in the same pass: every layer writes the KV of
    # all rows before it attends.
    chunks = [_chunk_rows(work) for work in batch if work.chunk]
    verified = [work.request for work in batch if work.verify]
    trees = [_tree_rows(request) for request in verified]
    logits = engine.forward([*chunks, *trees])
    return _verdicts(engine, verified, trees, logits) if trees else []


def _chunk_rows(work: Work) -> TreeRequest:
    """The next prompt tokens: a chain whose logits nobody needs."""
    request = work.request
    return TreeRequest(
        tokens=request.context[request.cached : request.cached + work.chunk],
        parents=range(-1, work.chunk - 1),
        prefix_len=request.cached,
        pages=request.pages,
        logit_rows=(),
    )


def _tree_rows(request: Request) -> TreeRequest:
    """The root and the draft under it; plain decoding is a draft of no nodes."""
    assert request.draft is not None, "a request without a draft was scheduled"
    tokens = [request.context[request.root], *request.draft.tokens]
    return TreeRequest(
        tokens=tokens,
        parents=[-1, *request.draft.parents],
        prefix_len=request.root,
        pages=request.pages,
        logit_rows=range(len(tokens)),
    )


def _verdicts(
    engine: Engine, requests: list[Request], trees: list[TreeRequest], logits: Tensor
) -> list[Outcome]:
    """Draw the target's token at every node, walk each tree, compact the cache."""
    sizes = [len(tree.tokens) for tree in trees]
    offsets = _column(accumulate(sizes, initial=0), np.int32, logits.device)
    parents = _column(chain.from_iterable(tree.parents for tree in trees), np.int32, logits.device)
    tokens = _column(chain.from_iterable(tree.tokens for tree in trees), np.int64, logits.device)
    ancestors, depth = build_tree(parents, offsets, words=-(-max(sizes) // 64))
    target = target_tokens(logits, *_sampling(requests, sizes, depth))
    path, accepted_lens, bonus = verify(tokens, ancestors, offsets, target, max(sizes))
    engine.compact_verified(trees, path, accepted_lens)
    # The only wait for the device in a step: one copy of all verdicts, everything else is queued.
    verdicts = torch.cat((accepted_lens[:, None], bonus[:, None], path), dim=1).tolist()
    return [
        _outcome(request, nodes[:count], token)
        for request, (count, token, *nodes) in zip(requests, verdicts, strict=True)
    ]


def _column(numbers: Iterable[int], dtype: type, device: torch.device) -> Tensor:
    """A tensor of these numbers; NumPy takes them several times as fast as torch does."""
    return torch.from_numpy(np.fromiter(numbers, dtype)).to(device)


def _sampling(requests: list[Request], sizes: list[int], depth: Tensor) -> tuple[Tensor, ...]:
    """temperature, top_k, top_p, min_p, seed and position of every row, each [N]."""
    rows = np.repeat(np.arange(len(requests)), sizes)
    params = [request.params for request in requests]
    columns = (
        np.array([p.temperature for p in params], np.float32),
        np.array([min(p.top_k, MOST_TOP_K) for p in params], np.int32),
        np.array([p.top_p for p in params], np.float32),
        np.array([p.min_p for p in params], np.float32),
        np.array([p.seed for p in params], np.uint64).astype(np.int64),
    )
    position = torch.from_numpy(np.array([len(r.context) for r in requests])[rows]).to(depth.device)
    on_device = tuple(torch.from_numpy(column[rows]).to(depth.device) for column in columns)
    return (*on_device, position + depth)


def _outcome(request: Request, path: list[int], bonus: int) -> Outcome:
    if bonus < 0:
        return Failed(request, "the model gave no valid probabilities for this request")
    return Verified(request, path, bonus)
