"""Integers with a scale and a zero point for each group of inputs, in a format that runs.

value = scale * (code - zero), which is what GPTQ, AWQ and compressed-tensors mean by theirs. The
blocks of Q4_0, Q5_0 and Q8_0 hold any such integers that fit between their ends, so the values stay
what they are. Knows no files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.model.formats import Weight
from specedge_kernels import StoredWeight
from specedge_kernels.quantized import BLOCK

Q4_0, Q5_0, Q8_0 = 2, 6, 8
_OFFSETS = {Q4_0: 8, Q5_0: 16, Q8_0: 128}  # what a code of all zero bits lies below zero
_CHUNK = 1 << 20  # weights at a time


@dataclass(frozen=True)
class Integers:
    """A weight [M, K] in integers of `bits`.

    codes: (first, last) -> uint8 [last - first, K]; of each group zeros [M, G], integers, and
    scales [M, G]; groups [K]: the group of each input.
    """

    codes: Callable[[int, int], Tensor]
    zeros: Tensor
    scales: Tensor
    groups: Tensor
    bits: int

    def weight(self) -> Weight:
        """In the shortest format that holds every value, else as floats.

        Raises ValueError for scales that are not finite and for groups that are none.
        """
        if not self.scales.isfinite().all():
            raise ValueError("its scales are not all finite")
        n_groups = self.scales.shape[1]
        if self.groups.numel() and not 0 <= self.groups.amin() <= self.groups.amax() < n_groups:
            raise ValueError(f"its inputs belong to groups outside of 0 .. {n_groups - 1}")
        kind = self._kind()
        return self._floats() if kind is None else self._blocks(kind)

    def _kind(self) -> int | None:
        """The format of blocks of 32 inputs, which must be of one group each."""
        inputs = len(self.groups)
        if inputs % BLOCK or not self._has_half_scales():
            return None
        blocks = self.groups.view(-1, BLOCK)
        if not (blocks == blocks[:, :1]).all():
            return None
        lowest, highest = (int(edge) for edge in self.zeros.aminmax())
        below, above = highest, (1 << self.bits) - 1 - lowest
        fits = (kind for kind, most in _OFFSETS.items() if below <= most and above < most)
        return next(fits, None)

    def _has_half_scales(self) -> bool:
        return torch.equal(self.scales.half().to(self.scales.dtype), self.scales)

    def _chunks(self) -> list[tuple[int, int]]:
        outputs, step = len(self.scales), max(1, _CHUNK // max(1, len(self.groups)))
        return [(first, min(first + step, outputs)) for first in range(0, outputs, step)]

    def _blocks(self, kind: int) -> StoredWeight:
        groups = self.groups.view(-1, BLOCK)[:, 0]  # of each block
        halves = self.scales.half()[:, groups, None].view(torch.uint8)  # [M, K / 32, 2]
        # integers modulo 256: what is added to a code becomes what is taken from it
        shifts = (_OFFSETS[kind] - self.zeros).to(torch.uint8)[:, groups, None]
        rows = []
        for first, last in self._chunks():
            codes = self.codes(first, last).unflatten(1, (-1, BLOCK)) + shifts[first:last]
            rows.append(torch.cat((halves[first:last], *_packed(codes, kind)), -1).flatten(1))
        return StoredWeight(torch.cat(rows), kind)

    def _floats(self) -> Tensor:
        """float16 holds what so few bits make within its precision, if it holds the scales."""
        dtype = torch.float16 if self._has_half_scales() else torch.float32
        scales, zeros = self.scales.float(), self.zeros.float()
        rows = []
        for first, last in self._chunks():
            whole = self.codes(first, last).float() - zeros[first:last, self.groups]
            rows.append((whole * scales[first:last, self.groups]).to(dtype))
        weight = torch.cat(rows)
        if not weight.isfinite().all():
            raise ValueError("its scales are too large")
        return weight


def _packed(codes: Tensor, kind: int) -> tuple[Tensor, ...]:
    """Codes [M, n, 32] as the bytes that follow the scale of a block: ggml's layouts."""
    if kind == Q8_0:
        return (codes ^ 128,)
    nibbles = codes[..., :16] & 15 | codes[..., 16:] << 4
    if kind == Q4_0:
        return (nibbles,)
    bits = (codes >> 4).unflatten(2, (4, 8)) << torch.arange(8, dtype=torch.uint8)
    return bits.sum(-1, dtype=torch.uint8), nibbles


def unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes uint8 [..., 32 / bits * n] of int32 words [..., n], the lowest bits first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = words.contiguous().view(torch.uint8)[..., None] >> shifts & (1 << bits) - 1
    return codes.flatten(-2)
