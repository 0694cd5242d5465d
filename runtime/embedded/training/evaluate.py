"""How well a draft agrees with its target on held-out conversations.

The first metric is agreement with the target's own greedy text: at every answer position of an
answer made at temperature 0, is the text's next token the draft's first choice, or among its
first four? Knows nothing of training.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from runtime.embedded.training.corpus import Corpus
from runtime.embedded.training.llama import Llama
from runtime.embedded.training.score import Scores, pad_inputs

_BATCH = 16


@dataclass(frozen=True)
class Agreement:
    """Shares over answer positions; distance is the total variation at temperature 1."""

    positions: int
    top1: float
    top4: float
    distance: float

    def __str__(self) -> str:
        distance = "" if math.isnan(self.distance) else f", distance {self.distance:.4f}"
        shares = f"top-1 {100 * self.top1:.2f} %, top-4 {100 * self.top4:.2f} %"
        return f"{shares}{distance} over {self.positions} positions"


@torch.inference_mode()
def predictions(draft: Llama, head_ids: Tensor, corpus: Corpus, index: int) -> Tensor:
    """The draft's probabilities [answer positions, H] over its head, for one conversation."""
    ids, _ = pad_inputs(corpus, [index])
    states = draft.hidden(torch.tensor(corpus.prefix), ids)[0, corpus.answer_offset(index) :]
    return linear(states, draft.weights["lm_head.weight"].float()).softmax(-1)


@torch.inference_mode()
def agreement(
    draft: Llama,
    head_ids: Tensor,
    corpus: Corpus,
    scores: Scores,
    indices: list[int],
    embedding: Tensor | None = None,
) -> Agreement:
    """Agreement over the answers of the given conversations.

    Where the answer is greedy the reference is its text, elsewhere the target's first choice.
    With the target's embedding [V, C] the distance is exact; without it, it is not computed.
    Raises ValueError when there is no position to measure.
    """
    top1 = top4 = count = 0
    distance = 0.0
    for index in indices:
        probs = predictions(draft, head_ids, corpus, index)
        wanted = torch.tensor(_reference(corpus, scores, index))
        hits = head_ids[probs.topk(4, dim=-1).indices] == wanted[:, None]
        top1 += int(hits[:, 0].sum())
        top4 += int(hits.sum())
        count += len(wanted)
        if embedding is not None:
            rows = slice(corpus.starts[index + 1] - len(wanted), corpus.starts[index + 1])
            states = torch.from_numpy(scores.states[rows].astype("float32"))
            target = linear(states, embedding).softmax(-1)[:, head_ids]
            distance += float((1 - torch.minimum(target, probs).sum(-1)).sum())
    if not count:
        raise ValueError("no answer positions to measure: the text has no held-out prompts")
    measured = distance / count if embedding is not None else float("nan")
    return Agreement(count, top1 / count, top4 / count, measured)


def _reference(corpus: Corpus, scores: Scores, index: int) -> list[int]:
    """The target's greedy token at every answer position."""
    at = corpus.answer_offset(index)
    if corpus.conversations[index].temperature == 0:
        return list(corpus.labels(index)[at:])
    rows = slice(corpus.starts[index] + at, corpus.starts[index + 1])
    return [int(token) for token in scores.ids[rows, 0]]
