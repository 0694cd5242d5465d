"""Writes Q4_K, Q5_K and Q6_K: blocks of 256 weights, which the gguf package only reads.

Layouts: block_q4_K, block_q5_K and block_q6_K in ggml-common.h. The same weights give the same
bytes on every machine: no sum depends on the width of its vectors.
"""

import numpy as np
import torch
from torch import Tensor

GROUP = 32  # weights of Q4_K and Q5_K that share a scale and a minimum
# The ranges over which the largest code is spread in turn, less the largest code.
_TRIED = tuple(0.15 * step - 1 for step in range(11))


def q4_k(values: np.ndarray) -> np.ndarray:
    """float32 values [M, K] -> rows [M, bytes] of Q4_K; K is a multiple of 256."""
    halves, factors, codes = _scaled_with_minima(values, 15)
    return _rows(values, halves, factors, _nibbles(codes))


def q5_k(values: np.ndarray) -> np.ndarray:
    """float32 values [M, K] -> rows [M, bytes] of Q5_K; K is a multiple of 256."""
    halves, factors, codes = _scaled_with_minima(values, 31)
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")[:, 0]
    return _rows(values, halves, factors, fifth, _nibbles(codes & 15))


def _scaled_with_minima(values: np.ndarray, largest: int) -> tuple[np.ndarray, ...]:
    """Of n blocks of 256: halves [n, 4] and factors [n, 12] bytes, codes [n, 8, 32] uint8."""
    groups = torch.from_numpy(values).view(-1, GROUP).T.contiguous()  # [32, 8 n]
    units, factors = zip(*map(_in_6_bits, _fitted(groups, largest)), strict=True)
    scale, minimum = ((u.float() * f).flatten() for u, f in zip(units, factors, strict=True))
    codes = torch.where(scale > 0, (groups + minimum) / scale, 0.0).round_().clamp_(0, largest)
    halves = torch.cat(units, 1).numpy().view(np.uint8)
    scales, minima = (factor.to(torch.uint8).numpy() for factor in factors)
    low, high = (scales[:, :4], minima[:, :4]), (scales[:, 4:], minima[:, 4:])
    packed = [*(a | b >> 4 << 6 for a, b in zip(low, high, strict=True))]
    packed.append(high[0] & 15 | high[1] << 4)
    return halves, np.concatenate(packed, 1), codes.to(torch.uint8).T.reshape(-1, 8, GROUP).numpy()


def _fitted(groups: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Scales and minima [n] of groups [32, n]: value = scale * code - minimum, none below zero.

    The values are rounded to codes in a few ways; of each, least squares gives the best numbers.
    """
    low = groups.amin(0).clamp_(max=0)
    width = groups.amax(0) - low
    width[width == 0] = 1
    total, best = _sum(groups), torch.full_like(low, torch.inf)
    scale, minimum = torch.zeros_like(low), torch.zeros_like(low)
    for less in _TRIED:
        codes = ((groups - low) * ((largest + less) / width)).round_().clamp_(0, largest)
        first, second, product = _sum(codes), _sum(codes * codes), _sum(codes * groups)
        spread = GROUP * second - first * first
        slope = torch.where(spread > 0, (GROUP * product - first * total) / spread, 0.0)
        base = (total - slope * first) / GROUP
        above = base > 0  # no minimum says so
        slope = torch.where(above, torch.where(second > 0, product / second, 0.0), slope)
        base.clamp_(max=0)
        error = -slope * product - base * total  # and the squares of the values, always the same
        better = error < best
        for kept, new in (best, error), (scale, slope), (minimum, -base):
            torch.where(better, new, kept, out=kept)
    return scale, minimum


def _sum(numbers: Tensor) -> Tensor:
    """Over the first dimension, a power of two, in one order everywhere."""
    while len(numbers) > 1:
        numbers = numbers[: len(numbers) // 2] + numbers[len(numbers) // 2 :]
    return numbers[0]


def _in_6_bits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of 8 groups each as float16 [n, 1] times whole factors [n, 8]."""
    blocks = numbers.view(-1, 8)
    unit = (blocks.amax(1, keepdim=True) / 63).half()
    factors = torch.where(unit > 0, blocks / unit.float(), 0.0).round_().clamp_(0, 63)
    return unit, factors


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [n, 8, 32] below 16 -> [n, 128], those of two groups in a byte."""
    pairs: np.ndarray = codes[:, ::2] | codes[:, 1::2] << 4
    return pairs.reshape(len(codes), -1)


def q6_k(values: np.ndarray) -> np.ndarray:
    """float32 values [M, K] -> rows [M, bytes] of Q6_K, each 16 scaled by their largest."""
    groups = values.reshape(len(values), -1, 16, 16)
    first = np.take_along_axis(groups, abs(groups).argmax(-1)[..., None], -1)[..., 0]
    steps = -first / 32  # the largest becomes -32
    unit = (abs(steps).max(-1, keepdims=True) / 127).astype(np.float16)
    with np.errstate(all="ignore"):
        scales = np.where(unit == 0, 0, np.rint(steps / unit)).astype(np.int32)
        left = groups / (unit.astype(np.float32) * scales)[..., None]
    codes = np.clip(np.rint(np.nan_to_num(left, posinf=0, neginf=0)), -32, 31).astype(np.int32)
    return q6_k_rows(codes, scales, unit)


def q6_k_rows(codes: np.ndarray, scales: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """codes [M, n, 16, 16] in -32 .. 31, scales [M, n, 16], float16 unit [M, n, 1] -> rows."""
    a, b, c, d = (
        (codes + 32).astype(np.uint8).reshape(*scales.shape[:2], 2, 4, 32).transpose(3, 0, 1, 2, 4)
    )  # [M, n, 2, 32] each
    low = np.concatenate(((a & 15) | c << 4, (b & 15) | d << 4), -1)
    high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
    return _rows(
        codes,
        low.reshape(*scales.shape[:2], 128),
        high.reshape(*scales.shape[:2], 64),
        scales.astype(np.int8).view(np.uint8),
        unit.view(np.uint8),
    )


def _rows(of: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """The bytes of blocks, part after part, in as many rows as `of` has."""
    return np.concatenate(parts, -1).reshape(len(of), -1)
