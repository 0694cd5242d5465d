"""The target's soft labels for a corpus, computed once and kept in memory-mapped files.

Per scored position: the ids and probabilities of the K likeliest next tokens at temperature 1, and
the target's final state. Knows nothing of the student.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from runtime.embedded.training.corpus import Corpus, batches
from runtime.embedded.training.llama import Llama

K = 48
BATCH_TOKENS = 4096  # in one pass of the target
_GROUP = 128


@dataclass(frozen=True)
class Scores:
    """Tables over all scored positions N of a corpus, as Corpus.starts lays them out."""

    ids: np.ndarray  # [N, K] uint16, likeliest first
    probs: np.ndarray  # [N, K] float16
    states: np.ndarray  # [N, C] float16


def open_scores(
    folder: Path, positions: int, hidden: int, mode: Literal["r", "w+"] = "r"
) -> Scores:
    """Open (mode "r") or make (mode "w+") the tables in a folder."""

    def table(name: str, dtype: type[np.generic], columns: int) -> np.ndarray:
        shape = positions, columns
        found: np.ndarray = np.memmap(folder / name, dtype=dtype, mode=mode, shape=shape)
        return found

    return Scores(
        table("ids.u16", np.uint16, K),
        table("probs.f16", np.float16, K),
        table("states.f16", np.float16, hidden),
    )


def score_corpus(target: Llama, corpus: Corpus, folder: Path) -> Scores:
    """Run the target over every conversation; an existing complete result is read instead.

    Positions that are not learned stay empty: half of the time goes into the labels.
    """
    done = folder / "complete"
    C = target.shape.hidden
    if done.exists() and done.read_text() == str(corpus.positions):
        return open_scores(folder, corpus.positions, C)
    folder.mkdir(parents=True, exist_ok=True)
    scores = open_scores(folder, corpus.positions, C, mode="w+")
    began, finished = time.monotonic(), 0
    order = batches(corpus, list(range(len(corpus.conversations))), BATCH_TOKENS, random.Random(0))
    for count, members in enumerate(order):
        finished += _score_batch(target, corpus, members, scores)
        if count % 20 == 0:
            rate = finished / (time.monotonic() - began)
            print(f"scored {finished}/{corpus.positions} positions, {rate:.0f}/s", flush=True)
    done.write_text(str(corpus.positions))
    return scores


def pad_inputs(corpus: Corpus, members: list[int]) -> tuple[Tensor, Tensor]:
    """Right-padded input ids [B, T] and the mask [B, T] of those that are not padding."""
    rows = [torch.tensor(corpus.inputs(index)) for index in members]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    sizes = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1])[None, :] < sizes[:, None]


def table_rows(corpus: Corpus, members: list[int]) -> np.ndarray:
    """Rows of the score tables for the unpadded positions of a batch, in the same order."""
    return np.concatenate(
        [np.arange(corpus.starts[index], corpus.starts[index + 1]) for index in members]
    )


@torch.inference_mode()
def _score_batch(target: Llama, corpus: Corpus, members: list[int], scores: Scores) -> int:
    ids, real = pad_inputs(corpus, members)
    states = target.hidden(torch.tensor(corpus.prefix), ids)[real]
    learned = np.concatenate(
        [np.arange(len(corpus.inputs(i))) >= corpus.first_learned(i) for i in members]
    )
    states, rows = states[torch.from_numpy(learned)], table_rows(corpus, members)[learned]
    embedding = target.weights["model.embed_tokens.weight"]
    for at in range(0, len(rows), 128):
        chunk, to = states[at : at + 128], rows[at : at + 128]
        top, probs = _likeliest(chunk, embedding)
        scores.ids[to] = top.numpy().astype(np.uint16)
        scores.probs[to] = probs.numpy().astype(np.float16)
        scores.states[to] = chunk.numpy().astype(np.float16)
    return len(learned)


def _likeliest(states: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and probabilities [n, K] of the likeliest tokens for states [n, C].

    The likeliest K tokens lie in the K groups with the highest maxima, so only those are sorted.
    Logits of the embedding's type decide who is among them, fp32 ones how likely each is.
    """
    logits = linear(states.to(embedding.dtype), embedding)
    n = len(logits)
    grouped = logits.view(n, -1, _GROUP)
    groups = grouped.amax(dim=-1).topk(K, dim=-1).indices  # [n, K]
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).view(n, -1)
    coarse, places = members.topk(K, dim=-1)
    top = groups.gather(1, places // _GROUP) * _GROUP + places % _GROUP
    exact = torch.einsum("nc,nkc->nk", states, embedding[top].float())
    everything = logits.float().logsumexp(-1, keepdim=True)
    rest = (everything.exp() - coarse.float().exp().sum(-1, keepdim=True)).clamp(min=0)
    probs = exact.exp() / (exact.exp().sum(-1, keepdim=True) + rest)
    order = probs.argsort(dim=-1, descending=True)
    return top.gather(1, order), probs.gather(1, order)
