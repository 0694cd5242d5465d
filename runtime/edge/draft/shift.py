"""What the target does to its logits, done to the draft's, so that drafts are not refused.

Only a guess stands on it: the target changes its own, and its word counts. So what cannot be known
here, such as the logit of a token outside the draft's head, is left as it is.
"""

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from runtime.edge.draft.edits import Edits
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


def _columns(tokens: "array[int] | Sequence[int]", token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of those of the tokens that have one, and which those are [len(tokens)] bool."""
    wanted = _tensor(tokens, token_ids)
    columns = torch.searchsorted(token_ids, wanted).clamp(max=len(token_ids) - 1)
    known = token_ids[columns] == wanted
    return columns[known], known


def _tensor(values: "array[int] | Sequence[int]", like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(values, np.int64)).to(like.device)
