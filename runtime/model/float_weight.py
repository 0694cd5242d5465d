"""Weights that are stored as floats of 8 or 4 bits with scales, as something that runs.

Knows numbers, no files.
"""

import torch
from torch import Tensor

from specedge_kernels import StoredWeight
from specedge_kernels.quantized import FORMS

MXFP4 = 39
FP8 = 256, 257  # with a scale for 128 inputs, for 32
_FP4 = torch.tensor((0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6))
_NAN = 0x7F  # of float8_e4m3fn and, as 0xff, of exponents
_LARGEST, _SMALLEST = 65504 / 448, 2.0**-20  # scales of float8 whose products float16 holds well
_CHUNK = 1 << 20  # weights at a time


def float8_weight(weight: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor | StoredWeight:
    """weight [M, K] float8_e4m3fn times the scale float32 [m, k] of its block of rows x columns.

    As it is, where blocks divide into groups of 32 inputs. Else bfloat16 where every product is
    exact in it, as scales that are powers of two make them, or float16, within its precision, or
    float32 where that does not reach. Raises ValueError for numbers that are not finite.
    """
    if not scales.isfinite().all():
        raise ValueError("its scales are not all finite")
    if (weight.view(torch.uint8) & _NAN == _NAN).any():
        raise ValueError("it holds numbers that are none")
    kind = float8_kind(weight.shape[1], columns)
    if kind is not None:
        return _grouped(weight, scales, rows, columns, kind)
    out = torch.empty(weight.shape, dtype=_type_of_products(scales))
    step = max(1, _CHUNK // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        part = weight[first : first + step].float()
        of_rows = scales[torch.arange(first, first + len(part)) // rows]
        out[first : first + step] = part * of_rows.repeat_interleave(columns, 1)[:, : part.shape[1]]
    return out


def float8_kind(inputs: int, columns: int) -> int | None:
    """The format for as many inputs, of which `columns` share a scale; None where no groups do."""
    fits = (
        kind
        for kind in FP8
        if inputs % FORMS[kind].inputs == 0
        and (columns >= inputs or columns % FORMS[kind].inputs == 0)
    )
    return next(fits, None)


def _grouped(weight: Tensor, scales: Tensor, rows: int, columns: int, kind: int) -> StoredWeight:
    """Each group of inputs behind the scale of its block."""
    length = FORMS[kind].inputs
    n_groups = weight.shape[1] // length
    of_groups = scales.repeat_interleave(rows, 0)[: len(weight)]
    of_groups = of_groups[:, torch.arange(n_groups) * length // max(columns, 1)]
    groups = torch.empty(len(weight), n_groups, length + 4, dtype=torch.uint8)
    groups[..., :4] = of_groups[..., None].view(torch.uint8)
    groups[..., 4:] = weight.view(torch.uint8).unflatten(1, (-1, length))
    return StoredWeight(groups.flatten(1), kind)


def _type_of_products(scales: Tensor) -> torch.dtype:
    sizes = scales[scales != 0].abs()
    if (sizes.frexp().mantissa == 0.5).all() and (sizes > 2.0**-100).all():
        return torch.bfloat16
    return torch.float16 if ((sizes > _SMALLEST) & (sizes < _LARGEST)).all() else torch.float32


def float4_weight(packed: Tensor, scales: Tensor, factor: Tensor) -> Tensor:
    """packed [M, K / 2] uint8, the lower bits first; scales [M, K / 16] float8, factor one number.

    float16, within its precision. Raises ValueError for numbers that are not finite.
    """
    products = scales.float() * factor
    out = torch.empty(len(packed), 2 * packed.shape[1], dtype=torch.float16)
    step = max(1, _CHUNK // max(1, packed.shape[1]))
    for first in range(0, len(packed), step):
        values = _FP4[_neighbours(packed[first : first + step]).int()].unflatten(1, (-1, 16))
        out[first : first + step] = (values * products[first : first + step, :, None]).flatten(1)
    if not out.isfinite().all():
        raise ValueError("its scales are not all finite, or too large for float16")
    return out


def mxfp4_rows(packed: Tensor, exponents: Tensor) -> StoredWeight:
    """packed [M, K / 2] uint8, the lower bits first, exponents [M, K / 32] uint8 -> as ggml has it.

    A block is its exponent and 16 bytes that hold the inputs i and i + 16. Raises ValueError for
    exponents that are no number.
    """
    if (exponents == 255).any():
        raise ValueError("its scales are not all finite")
    rows = torch.empty(*exponents.shape, 17, dtype=torch.uint8)
    rows[..., 0] = exponents
    step = max(1, _CHUNK // max(1, packed.shape[1]))
    for first in range(0, len(packed), step):
        codes = _neighbours(packed[first : first + step]).unflatten(1, (-1, 32))
        rows[first : first + step, :, 1:] = codes[..., :16] | codes[..., 16:] << 4
    return StoredWeight(rows.flatten(1), MXFP4)


def _neighbours(packed: Tensor) -> Tensor:
    """[M, n] bytes -> [M, 2 n] codes."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(1)
