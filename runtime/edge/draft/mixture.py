"""What the draft model says and what was looked up, as one distribution.

The noise that target and draft share is in the model's part alone: where the target repeats the
words of its prompt it is so sure of them that hardly any noise draws another.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


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
