"""What the requests of a step change of their logits: the Rules, and which tokens their texts have.

One group for each tree of the step, in its order. Knows no model and no wire but the Rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from runtime.history import History
from runtime.model import staging
from runtime.model.staging import Layout
from runtime.wire.messages import Rule


@dataclass(frozen=True)
class Edits:
    """What one request changes, as its text stood when the step was put together.

    tokens  [K] i64, distinct and rising, and counts [K] i32, as in `History`
    """

    rule: Rule
    tokens: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rule: Rule, history: History | None) -> "Edits":
        """A copy: the text goes on meanwhile."""
        if history is None:
            return cls(rule, np.empty(0, np.int64), np.empty(0, np.int32))
        return cls(rule, np.array(history.tokens, np.int64), np.array(history.counts, np.int32))


def grouped(edits: Sequence[Edits | None], device: torch.device) -> dict[str, Tensor]:
    """The arguments of `edit_logits` behind the tree's own, by name; None changes nothing."""
    texts = [0 if one is None else len(one.tokens) for one in edits]
    biases = [0 if one is None else len(one.rule.bias_ids) for one in edits]
    buffer, arrays = _layout(len(edits), sum(texts), sum(biases)).host_buffer(device)
    text_ends = arrays["text_offsets"][:] = [*accumulate(texts, initial=0)]
    bias_ends = arrays["bias_offsets"][:] = [*accumulate(biases, initial=0)]
    arrays["repetition"][:], arrays["frequency"][:], arrays["presence"][:] = 1, 0, 0
    for index, one in enumerate(edits):
        if one is None:
            continue
        text = slice(text_ends[index], text_ends[index + 1])
        arrays["text_tokens"][text], arrays["text_counts"][text] = one.tokens, one.counts
        bias = slice(bias_ends[index], bias_ends[index + 1])
        arrays["bias_tokens"][bias] = one.rule.bias_ids
        arrays["bias_values"][bias] = one.rule.bias_values
        arrays["repetition"][index] = one.rule.repetition_penalty
        arrays["frequency"][index] = one.rule.frequency_penalty
        arrays["presence"][index] = one.rule.presence_penalty
    return _layout(len(edits), sum(texts), sum(biases)).views(staging.upload(buffer, device))


def masked(
    masks: Sequence[np.ndarray | None], rows: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """The last arguments of `target_tokens`; None allows all tokens at as many rows of a tree."""
    row_of: list[int] = []
    given = 0
    for mask, count in zip(masks, rows, strict=True):
        row_of += [-1] * count if mask is None else range(given, given + len(mask))
        given = given if mask is None else given + len(mask)
    bits = np.concatenate([mask for mask in masks if mask is not None])
    layout = Layout(mask=(torch.int32, bits.shape), mask_row=(torch.int32, (len(row_of),)))
    buffer, arrays = layout.host_buffer(device)
    arrays["mask"][:], arrays["mask_row"][:] = bits, row_of
    return layout.views(staging.upload(buffer, device))


def _layout(trees: int, texts: int, biases: int) -> Layout:
    """The arrays of the edits: B trees, K tokens of their texts, J biases."""
    i32, i64, f32 = torch.int32, torch.int64, torch.float32
    return Layout(
        text_offsets=(i32, (trees + 1,)),
        text_tokens=(i64, (texts,)),
        text_counts=(i32, (texts,)),
        bias_offsets=(i32, (trees + 1,)),
        bias_tokens=(i64, (biases,)),
        bias_values=(f32, (biases,)),
        repetition=(f32, (trees,)),
        frequency=(f32, (trees,)),
        presence=(f32, (trees,)),
    )
