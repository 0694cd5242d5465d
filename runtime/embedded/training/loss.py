"""Distillation losses over a cut vocabulary head, with the gradient formed chunk by chunk.

The logits of a batch would take hundreds of megabytes, so they exist for a few hundred positions
at a time. Knows tables of soft labels, not models or files.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from runtime.embedded.training.arithmetic import COMPUTE

_CHUNK = 384


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, slots: Tensor, mass: Tensor) -> Tensor:
        states_c, head_c = states.to(COMPUTE), head.to(COMPUTE)
        grad_states = torch.empty_like(states)
        grad_head = torch.zeros_like(head)
        total = torch.zeros(())
        for at in range(0, len(states), _CHUNK):
            part = slice(at, at + _CHUNK)
            logits = linear(states_c[part], head_c).float()
            log_sum = logits.logsumexp(-1, keepdim=True)
            weight = mass[part].sum(-1, keepdim=True)
            total += (weight * log_sum).sum() - (mass[part] * logits.gather(1, slots[part])).sum()
            grad = logits.sub_(log_sum).exp_().mul_(weight)
            grad = grad.scatter_add_(1, slots[part], -mass[part]).to(COMPUTE)
            grad_states[part] = grad @ head_c
            grad_head += grad.T @ states_c[part]
        ctx.save_for_backward(grad_states, grad_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_states, grad_head = ctx.saved_tensors
        return grad_states * grad_total, grad_head * grad_total, None, None


def soft_cross_entropy(states: Tensor, head: Tensor, slots: Tensor, mass: Tensor) -> Tensor:
    """Summed cross-entropy of softmax(states @ head.T) to soft labels.

    states [N, C] fp32; head [H, C] fp32; slots [N, K] int64 rows of the head; mass [N, K] fp32,
    the label's weight at each slot (0 for a label that the head lacks). A position counts with
    the sum of its mass, so one whose likely tokens the head lacks counts little.
    """
    loss: Tensor = _SoftCrossEntropy.apply(states, head, slots, mass)  # type: ignore[no-untyped-call]
    return loss


def soft_labels(
    ids: Tensor, probs: Tensor, slot_of: Tensor, argmax_share: float
) -> tuple[Tensor, Tensor]:
    """Slots and mass [N, K] from the target's likeliest ids and their probabilities [N, K].

    slot_of [V] maps a token to its row in the head or to -1. The target's first choice gets
    argmax_share of each label on top of what is left of its own probability.
    """
    mass = probs * (1 - argmax_share)
    mass[:, 0] += argmax_share
    slots = slot_of[ids]
    return slots.clamp(min=0), mass * (slots >= 0)
