"""What the requests of a step change of their logits: the Rules, and which tokens their texts have.

One group for each tree of the step, in its order. Knows no model and no wire but the Rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from runtime.history import History
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


class GroupedEdits:
    """The arguments of `edit_logits` behind the tree's own, by name; None changes nothing."""

    def __init__(self, edits: Sequence[Edits | None]):
        self._edits = edits
        self._texts = [0 if one is None else len(one.tokens) for one in edits]
        self._biases = [0 if one is None else len(one.rule.bias_ids) for one in edits]
        self.layout = _layout(len(edits), sum(self._texts), sum(self._biases))

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        text_ends = arrays["text_offsets"][:] = [*accumulate(self._texts, initial=0)]
        bias_ends = arrays["bias_offsets"][:] = [*accumulate(self._biases, initial=0)]
        arrays["repetition"][:], arrays["frequency"][:], arrays["presence"][:] = 1, 0, 0
        for index, one in enumerate(self._edits):
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


class Masks:
    """The last arguments of `target_tokens`: of each tree of so many rows its rows [rows, words]
    i32, at least one; None allows all tokens."""

    def __init__(self, masks: Sequence[np.ndarray | None], rows: Sequence[int]):
        self._given = [mask for mask in masks if mask is not None]
        self._row_of: list[int] = []
        n_given = 0
        for mask, count in zip(masks, rows, strict=True):
            self._row_of += [-1] * count if mask is None else range(n_given, n_given + count)
            n_given += 0 if mask is None else count
        shape = n_given, self._given[0].shape[1]
        self.layout = Layout(mask=(torch.int32, shape), mask_row=(torch.int32, (sum(rows),)))

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        np.concatenate(self._given, out=arrays["mask"])
        arrays["mask_row"][:] = self._row_of


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
