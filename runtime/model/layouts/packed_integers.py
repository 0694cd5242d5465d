"""Integers of 2, 4 or 8 bits in words, as compressed-tensors packs them."""

import torch
from torch import Tensor

from runtime.model.formats import Weight
from runtime.model.integer_weight import Integers, unpacked
from runtime.model.layouts.layout import (
    FLOAT_BITS,
    FLOATS,
    Q5_0_BITS,
    Q8_0_BITS,
    Parts,
    evenly,
    expect,
    group_length,
)


class PackedIntegers:
    """compressed-tensors' pack-quantized: codes along the inputs, 2, 4 or 8 bits each.

    weight_packed [M, K bits / 32], weight_scale [M, G], weight_shape [2], and where there are any
    weight_zero_point [M bits / 32, G] and weight_g_idx [K].
    """

    method = "compressed-tensors"
    suffixes = (
        *(".weight_packed", ".weight_scale", ".weight_shape"),
        *(".weight_zero_point", ".weight_g_idx"),
    )
    gives = ".weight"

    def __init__(self, told: tuple[int, ...]):
        self.told = told

    def holds(self, parts: Parts) -> bool:
        return ".weight_packed" in parts and parts[".weight_packed"].dtype == "I32"

    def shape(self, parts: Parts) -> tuple[int, ...]:
        expect(parts, ".weight_shape", ("I64", "I32"), (2,))
        outputs, inputs = parts[".weight_shape"].read().tolist()
        expect(parts, ".weight_packed", ("I32",), (outputs, None))
        expect(parts, ".weight_scale", FLOATS, (outputs, None))
        bits, groups = self._bits(parts, inputs), parts[".weight_scale"].shape[1]
        if ".weight_zero_point" in parts:
            expect(parts, ".weight_zero_point", ("I32",), (-(-outputs * bits // 32), groups))
        if ".weight_g_idx" in parts:
            expect(parts, ".weight_g_idx", ("I32", "I64"), (inputs,))
        else:
            group_length(inputs, groups, self.told)
        return outputs, inputs

    def bits(self, parts: Parts) -> float:
        if ".weight_g_idx" in parts:
            return FLOAT_BITS
        _, inputs = self.shape(parts)
        return Q8_0_BITS if self._bits(parts, inputs) == 8 else Q5_0_BITS

    def weight(self, parts: Parts) -> Weight:
        outputs, inputs = self.shape(parts)
        bits = self._bits(parts, inputs)
        packed, scales = parts[".weight_packed"].read(), parts[".weight_scale"].read()
        if ".weight_zero_point" in parts:
            zeros = unpacked(parts[".weight_zero_point"].read().T, bits).T[:outputs].short()
        else:
            zeros = torch.full(scales.shape, 1 << bits - 1, dtype=torch.int16)
        if ".weight_g_idx" in parts:
            groups = parts[".weight_g_idx"].read().long()
        else:
            groups = evenly(inputs, scales.shape[1], self.told)

        def codes(first: int, last: int) -> Tensor:
            return unpacked(packed[first:last], bits)[:, :inputs]

        return Integers(codes, zeros, scales, groups, bits).weight()

    def _bits(self, parts: Parts, inputs: int) -> int:
        words = parts[".weight_packed"].shape[1]
        for bits in (2, 4, 8):
            if inputs > 0 and -(-inputs * bits // 32) == words:
                return bits
        raise ValueError(f"it has {inputs} inputs in {words} words; expected 4 or 8 bits each")
