"""One verification step: a batch of sessions in, a verdict or a reason for each out.

Reads sessions and never changes them: the caller applies the outcomes, so a step that fails can be
tried again session by session. Knows nothing of sockets, clocks or scheduling.
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
from runtime.server.scheduler import Work
from runtime.server.session import Session
from specedge_kernels import build_tree, target_tokens, verify

log = logging.getLogger(__name__)

MOST_TOP_K = 2**31 - 1  # that the kernels can be told; no vocabulary is as large


@dataclass(frozen=True)
class Prefilled:
    """`count` more tokens of the context are in the cache."""

    session: Session
    count: int


@dataclass(frozen=True)
class Verified:
    """The walk along the target's tokens: `path` of node numbers from the root (0), and the bonus.

    The KV of the path already lies in order behind the prefix.
    """

    session: Session
    path: list[int]
    bonus: int


@dataclass(frozen=True)
class Failed:
    """The session cannot go on; its batch mates are not affected."""

    session: Session
    sentence: str


Outcome = Prefilled | Verified | Failed


def verify_batch(engine: Engine, batch: Sequence[Work]) -> list[Outcome]:
    """Run one step. A batch that raises is run again one session at a time."""
    try:
        return _step(engine, batch)
    except Exception as error:  # whatever one request does must not reach its batch mates
        log.exception("a step of %d sessions failed", len(batch))
        if len(batch) == 1:
            return [Failed(batch[0].session, f"the server failed on this request: {error}")]
        return [outcome for work in batch for outcome in verify_batch(engine, [work])]


def _step(engine: Engine, batch: Sequence[Work]) -> list[Outcome]:
    chunks = [work for work in batch if work.chunk]
    trees = [work.session for work in batch if work.verify]
    # A tree may attend to a chunk of its own prompt in the same pass: every layer writes the KV of
    # all rows before it attends.
    chunk_requests = [_chunk_request(work) for work in chunks]
    requests = [_tree_request(session) for session in trees]
    logits = engine.forward([*chunk_requests, *requests])
    outcomes: list[Outcome] = [Prefilled(work.session, work.chunk) for work in chunks]
    return outcomes + _verdicts(engine, trees, requests, logits) if trees else outcomes


def _chunk_request(work: Work) -> TreeRequest:
    """The next prompt tokens: a chain whose logits nobody needs."""
    session = work.session
    return TreeRequest(
        tokens=session.context[session.cached : session.cached + work.chunk],
        parents=range(-1, work.chunk - 1),
        prefix_len=session.cached,
        pages=session.pages,
        logit_rows=(),
    )


def _tree_request(session: Session) -> TreeRequest:
    """The root and the draft under it; plain decoding is a draft of no nodes."""
    assert session.draft is not None, "a session without a draft was scheduled"
    tokens = [session.context[session.root], *session.draft.tokens]
    return TreeRequest(
        tokens=tokens,
        parents=[-1, *session.draft.parents],
        prefix_len=session.root,
        pages=session.pages,
        logit_rows=range(len(tokens)),
    )


def _verdicts(
    engine: Engine, trees: list[Session], requests: list[TreeRequest], logits: Tensor
) -> list[Outcome]:
    """Draw the target's token at every node, walk each tree, compact the cache."""
    sizes = [len(request.tokens) for request in requests]
    offsets = _column(accumulate(sizes, initial=0), np.int32, logits.device)
    parents = _column(chain.from_iterable(r.parents for r in requests), np.int32, logits.device)
    tokens = _column(chain.from_iterable(r.tokens for r in requests), np.int64, logits.device)
    ancestors, depth = build_tree(parents, offsets, words=-(-max(sizes) // 64))
    target = target_tokens(logits, *_sampling(trees, sizes, depth))
    path, accepted_lens, bonus = verify(tokens, ancestors, offsets, target, max(sizes))
    engine.compact_verified(requests, path, accepted_lens)
    # The only wait for the device in a step: one copy of all verdicts, everything else is queued.
    verdicts = torch.cat((accepted_lens[:, None], bonus[:, None], path), dim=1).tolist()
    return [
        _outcome(session, nodes[:count], token)
        for session, (count, token, *nodes) in zip(trees, verdicts, strict=True)
    ]


def _column(numbers: Iterable[int], dtype: type, device: torch.device) -> Tensor:
    """A tensor of these numbers; NumPy takes them several times as fast as torch does."""
    return torch.from_numpy(np.fromiter(numbers, dtype)).to(device)


def _sampling(trees: list[Session], sizes: list[int], depth: Tensor) -> tuple[Tensor, ...]:
    """temperature, top_k, top_p, min_p, seed and position of every row, each [N]."""
    rows = np.repeat(np.arange(len(trees)), sizes)
    params = [session.params for session in trees]
    columns = (
        np.array([p.temperature for p in params], np.float32),
        np.array([min(p.top_k, MOST_TOP_K) for p in params], np.int32),
        np.array([p.top_p for p in params], np.float32),
        np.array([p.min_p for p in params], np.float32),
        np.array([p.seed for p in params], np.uint64).astype(np.int64),
    )
    position = torch.from_numpy(np.array([len(s.context) for s in trees])[rows]).to(depth.device)
    on_device = tuple(torch.from_numpy(column[rows]).to(depth.device) for column in columns)
    return (*on_device, position + depth)


def _outcome(session: Session, path: list[int], bonus: int) -> Outcome:
    if bonus < 0:
        return Failed(session, "the model gave no valid probabilities for this request")
    return Verified(session, path, bonus)
