"""What the draft model says, changed as the target changes its logits, and what was looked up.

Only a guess stands on the changes: the target makes its own, and its word counts. So what cannot be
known here, such as the logit of a token outside the draft's head, is left as it is. The noise that
target and draft share is in the model's part of a mixture alone: where the target repeats the words
of its prompt it is so sure of them that hardly any noise draws another.
"""

import math
from array import array
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from runtime.edge.draft.speculation import Edits
from runtime.history import History


def shift(
    edits: Edits, history: History | None, path: Sequence[int], logits: Tensor, token_ids: Tensor
) -> Tensor:
    """What to add to a row of logits [V] f32; its columns are the tokens token_ids [V] i64, rising.

    The row stands behind `history` and then `path`, which counts as output. A new tensor [V].
    """
    edited = logits.clone()
    if edits.bias:
        columns, known = _columns([token for token, _ in edits.bias], token_ids)
        values = logits.new_tensor([value for _, value in edits.bias])
        edited[columns] += values[known]
    if history is not None:
        whole = history.followed_by(path)
        columns, known = _columns(whole.tokens, token_ids)
        counts = _tensor(whole.counts, logits)[known].to(logits.dtype)
        x = edited[columns]
        x = torch.where(x > 0, x / edits.repetition, x * edits.repetition)
        edited[columns] = x - edits.frequency * counts - edits.presence * (counts > 0)
    return edited - logits


def mix(
    log_probabilities: Mapping[int, float], shares: Mapping[int, float]
) -> list[tuple[int, float]]:
    """Mix shares of tokens into the draft's likeliest ones: (token, log-probability), best first.

    A token that is looked up and not among these is as likely as its share says.
    """
    rest = 1 - sum(shares.values())
    mixed = {token: rest * math.exp(score) for token, score in log_probabilities.items()}
    for token, share in shares.items():
        mixed[token] = mixed.get(token, 0.0) + share
    likely = sorted(mixed.items(), key=lambda item: (-item[1], item[0]))
    return [(token, math.log(probability)) for token, probability in likely if probability > 0]


def changed(shares: Mapping[int, float], change: Tensor, token_ids: Tensor) -> dict[int, float]:
    """Shares of tokens whose logits are changed as in `change` [V] f32, of token_ids [V], rising.

    Of a token outside the draft's head no change is known.
    """
    if not shares:
        return {}
    tokens = torch.tensor([*shares], device=token_ids.device)
    columns = torch.searchsorted(token_ids, tokens).clamp(max=len(token_ids) - 1)
    factors = torch.where(token_ids[columns] == tokens, change[columns].exp(), 1.0).tolist()
    scaled = [share * factor for share, factor in zip(shares.values(), factors, strict=True)]
    total = 1 - sum(shares.values()) + sum(scaled)
    return {token: share / total for token, share in zip(shares, scaled, strict=True)}


def _columns(tokens: "array[int] | Sequence[int]", token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of those of the tokens that have one, and which those are [len(tokens)] bool."""
    wanted = _tensor(tokens, token_ids)
    columns = torch.searchsorted(token_ids, wanted).clamp(max=len(token_ids) - 1)
    known = token_ids[columns] == wanted
    return columns[known], known


def _tensor(values: "array[int] | Sequence[int]", like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64)).to(like.device)
