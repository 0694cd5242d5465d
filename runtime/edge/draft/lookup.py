"""Prompt lookup: what followed the last tokens when they stood in the text before.

Answers often repeat names, numbers and phrases of the prompt, which a small draft model cannot
know; looking them up costs next to nothing. Pure Python over token ids.
Source: prompt-lookup decoding (Saxena, 2023), here as a distribution mixed into the draft's own.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# How far a match of this length is trusted against the draft model: fitted on text that the
# embedded target wrote, see runtime/embedded/README.md. The result depends on them only weakly.
WEIGHTS = {3: 0.5, 2: 0.2, 1: 0.05}
LONGEST = max(WEIGHTS)


class SuffixIndex:
    """Followers of every n-gram of one text, for the lengths of `WEIGHTS`."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self._tail: tuple[int, ...] = ()

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            for length in range(1, len(self._tail) + 1):
                self._followers[self._tail[-length:]][token] += 1
            self._tail = (*self._tail, token)[-LONGEST:]

    def next_tokens(self, path: Sequence[int]) -> dict[int, float]:
        """Token -> share of the mixture, after the text and then `path`; empty if nothing fits.

        The longest n-gram that occurred before decides; its shares add up to its weight.
        """
        tail = (*self._tail, *path)[-LONGEST:]
        for length in range(len(tail), 0, -1):
            if followers := self._followers.get(tail[-length:]):
                total = followers.total()
                return {token: WEIGHTS[length] * n / total for token, n in followers.items()}
        return {}


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
