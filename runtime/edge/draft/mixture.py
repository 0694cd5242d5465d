"""What the draft model says and what was looked up, as one distribution."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mix(
    logits: Tensor, token_ids: Tensor, shares: Sequence[dict[int, float]]
) -> tuple[Tensor, Tensor]:
    """Mix shares of tokens into each row's distribution.

    logits [N, V] f32 and token_ids [V] i64, sorted, as the draft gives them; shares: one dict for
    each row. Returns log-probabilities [N, V + X] and ids [V + X]: X tokens outside the draft's
    head are appended.
    """
    found = sorted({token for row in shares for token in row})
    if not found:
        return logits, token_ids
    wanted = torch.tensor(found, device=logits.device)
    column = torch.searchsorted(token_ids, wanted).clamp(max=len(token_ids) - 1)
    missing = token_ids[column] != wanted
    n_extra = int(missing.sum())
    column[missing] = len(token_ids) + torch.arange(n_extra, device=logits.device)
    extra = logits.new_full((len(shares), n_extra), -math.inf)
    mixed = torch.cat((logits.log_softmax(-1), extra), dim=1)
    share = logits.new_tensor([[row.get(token, 0.0) for token in found] for row in shares])
    mixed += torch.log1p(-share.sum(1, keepdim=True))
    mixed[:, column] = torch.logaddexp(mixed[:, column], share.log())
    return mixed, torch.cat((token_ids, wanted[missing]))
