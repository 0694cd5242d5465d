"""Weights in the form that they run in: floats, or quantised in a format that the kernels know.

Works some rows at a time, so that no matrix is ever whole in float32. Knows numbers and blocks, no
files. Formats go by the numbers of `quantized.FORMS`, or ggml's; gguf, which decodes and writes
blocks, is imported when needed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.model import k_quants
from runtime.model.config import ModelError
from specedge_kernels import StoredWeight, dequantize
from specedge_kernels.quantized import FORMS

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# what weights can be quantised to at load
KINDS = {
    "q8_0": 8, "q6_k": 14, "q5_k": 13, "q5_1": 7, "q5_0": 6, "q4_k": 12, "q4_1": 3, "q4_0": 2,
}  # fmt: skip
Q6_K = 14
_WRITERS = {12: k_quants.q4_k, 13: k_quants.q5_k, Q6_K: k_quants.q6_k}
_SHORTER = {12: 6, 13: 7, Q6_K: 8}  # in place of these, as in llama.cpp: blocks of 32 not 256
_LARGEST = 65504.0  # of float16
_CHUNK = 1 << 20  # weights that are floats at a time

# Formats whose weights are integers times a float16 number: where in a block of 256 that stands,
# and by what it is multiplied.
_UNITS = {11: (108, 1.0), 18: (0, 0.25), 19: (0, 0.125), 21: (0, 1.0), 34: (52, 1.0), 35: (64, 1.0)}

Weight = Tensor | StoredWeight


def name_of(weight: Weight) -> str:
    """Of its format or type, as people write it."""
    if isinstance(weight, StoredWeight):
        form = FORMS.get(weight.kind)
        return form.name if form else str(_ggml(weight.kind).name)
    return str(weight.dtype).removeprefix("torch.")


def n_bytes(weight: Weight) -> int:
    return weight.rows.nbytes if isinstance(weight, StoredWeight) else weight.nbytes


def floats(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The values of a vector or a matrix. Raises ModelError for a format that nobody decodes."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if weight.rows.dim() == 1:
        return _values(weight.rows[None], weight.kind)[0].to(dtype)
    return torch.cat([_values(rows, weight.kind).to(dtype) for rows in _chunks(weight)])


def runnable(weight: Weight) -> Weight:
    """The same, if need be in a format that the kernels know and that holds every value.

    Float16 holds all that formats of few bits make, within its precision.
    """
    if isinstance(weight, Tensor):
        return weight if weight.dtype in FLOATS.values() else weight.float()
    if weight.kind in FORMS:
        return weight
    if weight.kind in _UNITS:
        chunks = [_integers(rows, weight.kind) for rows in _chunks(weight)]
        if all(chunk is not None for chunk in chunks):
            return StoredWeight(torch.cat([chunk for chunk in chunks if chunk is not None]), Q6_K)
    return floats(weight, torch.float16)


def quantised(weight: Weight, kind: int) -> Weight:
    """In that format; where rows are no multiple of its blocks, of shorter ones or as float16.

    Raises ModelError for numbers that float16, in which blocks have their scales, does not know.
    """
    inputs = _inputs(weight)
    kind = kind if inputs % FORMS[kind].inputs == 0 else _SHORTER.get(kind, kind)
    if inputs % FORMS[kind].inputs:
        return floats(weight, torch.float16)
    if isinstance(weight, StoredWeight) and weight.kind == kind:
        return weight
    write = _WRITERS.get(kind) or _writer(kind)
    chunks = [_written(_part(weight, rows), write) for rows in _chunks(weight)]
    return StoredWeight(torch.cat(chunks), kind)


def rows_of(weight: Weight, first: int, last: int) -> Weight:
    """Rows first .. last - 1, in memory of their own."""
    return _part(
        weight, (weight.rows if isinstance(weight, StoredWeight) else weight)[first:last].clone()
    )


def _written(part: Weight, write: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    values = floats(part, torch.float32)
    if not (values.abs() <= _LARGEST).all():
        raise ModelError(
            "the model has weights that are not finite, or beyond float16's numbers, which cannot "
            "be quantised; take --weights stored"
        )
    with np.errstate(all="ignore"):  # what is too small for a scale becomes 0
        return torch.from_numpy(write(values.numpy()))


def _part(weight: Weight, rows: Tensor) -> Weight:
    return StoredWeight(rows, weight.kind) if isinstance(weight, StoredWeight) else rows


def _inputs(weight: Weight) -> int:
    if isinstance(weight, Tensor):
        return weight.shape[1]
    form = FORMS.get(weight.kind)
    block, n_bytes = (form.inputs, form.stored_bytes) if form else _block(weight.kind)
    return weight.rows.shape[1] // n_bytes * block


def _chunks(weight: Weight) -> tuple[Tensor, ...]:
    rows = weight.rows if isinstance(weight, StoredWeight) else weight
    return torch.split(rows, max(1, _CHUNK // max(1, _inputs(weight))))


def _values(rows: Tensor, kind: int) -> Tensor:
    """float32 values [M, K] of stored rows [M, bytes]."""
    if kind in FORMS:
        return dequantize(rows, kind)
    from gguf.quants import dequantize as decoded

    try:
        return torch.from_numpy(decoded(rows.numpy(), _ggml(kind)))
    except NotImplementedError:
        raise ModelError(f"weights of type {_ggml(kind).name} cannot be decoded") from None


def _writer(kind: int) -> Callable[[np.ndarray], np.ndarray]:
    from gguf.quants import quantize

    return lambda values: quantize(values, _ggml(kind))


def _ggml(kind: int) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind)


def _block(kind: int) -> tuple[int, int]:
    """Weights and bytes of a block."""
    from gguf import GGML_QUANT_SIZES

    return GGML_QUANT_SIZES[_ggml(kind)]


def _integers(rows: Tensor, kind: int) -> Tensor | None:
    """Rows of a format in `_UNITS` as rows of Q6_K with the same values; None if these differ.

    Q6_K is a float16 number times an int8 scale for 16 weights each times 6 bits.
    """
    place, factor = _UNITS[kind]
    blocks = rows.numpy().reshape(len(rows), -1, _block(kind)[1])
    unit = blocks[..., place : place + 2].copy().view(np.float16).astype(np.float32) * factor
    values = _values(rows, kind).numpy().reshape(*blocks.shape[:2], 16, 16)
    with np.errstate(all="ignore"):
        whole = np.where(unit[..., None] == 0, 0, np.rint(values / unit[..., None]))
    if not (abs(whole) < 4096).all():
        return None
    whole = whole.astype(np.int32)
    scales = _scales(whole)
    codes, halves = whole // scales[..., None], unit.astype(np.float16)
    exact = halves.astype(np.float32)[..., None] * whole == values
    if not (exact.all() and (scales < 128).all() and (abs(codes + 0.5) < 32).all()):
        return None
    return torch.from_numpy(k_quants.q6_k_rows(codes, scales, halves))


def _scales(whole: np.ndarray) -> np.ndarray:
    """A divisor of each 16 integers, below 128 where one leaves quotients within -32 .. 31."""
    common: np.ndarray = np.maximum(np.gcd.reduce(whole, axis=-1), 1)
    scales: np.ndarray = common.copy()
    for factor in range(2, 32):
        smaller = (scales >= 128) & (common % factor == 0)
        scales[smaller] = common[smaller] // factor
    return scales
