"""Float8 and int8, a byte each, as the fine-grained FP8 of transformers, FBGEMM, ModelOpt and
compressed-tensors store them.
"""

import math

import torch

from runtime.model.float_weight import float8_kind, float8_weight
from runtime.model.formats import Weight
from runtime.model.integer_weight import Integers
from runtime.model.layouts.layout import FLOAT_BITS, FLOATS, Q8_0_BITS, Parts, expect
from specedge_kernels.quantized import FORMS


class WholeBytes:
    """A weight of one byte each, float8 or integer, with scales of some shape.

    weight [M, K]; weight_scale, or weight_scale_inv, which is no inverse either: one number, one of
    each output, or one of each block of [rows, columns], the last of which may be partial.
    Integers may have a weight_zero_point of that shape besides.
    """

    suffixes = (".weight", ".weight_scale", ".weight_scale_inv", ".weight_zero_point")
    gives = ".weight"

    def __init__(self, method: str, blocks: tuple[tuple[int, int], ...]):
        self.method, self.blocks = method, blocks

    def holds(self, parts: Parts) -> bool:
        return ".weight" in parts and (".weight_scale" in parts or ".weight_scale_inv" in parts)

    def shape(self, parts: Parts) -> tuple[int, ...]:
        expect(parts, ".weight", ("F8_E4M3", "I8"), (None, None))
        scale = self._scale(parts)
        expect(parts, scale, (*FLOATS, "F8_E8M0"), None)
        self._block(parts)
        if ".weight_zero_point" in parts:
            expect(parts, ".weight_zero_point", ("I8",), parts[scale].shape)
        return parts[".weight"].shape

    def bits(self, parts: Parts) -> float:
        if parts[".weight"].dtype != "F8_E4M3":
            return Q8_0_BITS
        kind = float8_kind(parts[".weight"].shape[1], self._block(parts)[1])
        return FLOAT_BITS if kind is None else 8 * FORMS[kind].stored_bytes / FORMS[kind].inputs

    def weight(self, parts: Parts) -> Weight:
        outputs, inputs = self.shape(parts)
        weight, scales = parts[".weight"].read(), parts[self._scale(parts)].read()
        rows, columns = self._block(parts)
        n_columns = -(-inputs // columns) if columns else 1
        scales = scales.float().view(-1, n_columns)
        if weight.dtype == torch.float8_e4m3fn:
            return float8_weight(weight, scales, rows, columns)
        zeros = torch.full(scales.shape, 128, dtype=torch.int16)
        if ".weight_zero_point" in parts:
            zeros += parts[".weight_zero_point"].read().view(zeros.shape)
        of_outputs = torch.arange(outputs) // rows
        return Integers(
            lambda first, last: weight[first:last].view(torch.uint8) ^ 128,
            zeros[of_outputs],
            scales[of_outputs],
            torch.arange(inputs) // columns,
            8,
        ).weight()

    def _scale(self, parts: Parts) -> str:
        name = ".weight_scale_inv"
        return name if name in parts else ".weight_scale"

    def _block(self, parts: Parts) -> tuple[int, int]:
        """Outputs and inputs that share a scale."""
        (outputs, inputs), got = parts[".weight"].shape, parts[self._scale(parts)].shape
        if math.prod(got) == 1:
            return outputs, inputs
        if got in ((outputs,), (outputs, 1)):
            return 1, inputs
        blocks = {
            (-(-outputs // rows), -(-inputs // columns)): (rows, columns)
            for rows, columns in self.blocks
        }
        if got in blocks:
            return blocks[got]
        expected = " or ".join(str(list(shape)) for shape in ((1,), (outputs, 1), *blocks))
        raise ValueError(f"its scales have the shape {list(got)}; expected {expected}")
