"""MXFP4 and NVFP4, two floats of 4 bits to a byte."""

import torch

from runtime.model.float_weight import float4_weight, mxfp4_rows
from runtime.model.formats import Weight
from runtime.model.layouts.layout import FLOAT_BITS, MXFP4_BITS, Parts, expect


class PackedFloats:
    """Floats of 4 bits, neighbours in a byte, with a scale of each 16 or 32 inputs.

    weight_packed (or weight) [M, K / 2]; weight_scale [M, K / 32] powers of two, or [M, K / 16]
    float8 beside weight_global_scale, which divides, or weight_scale_2, which multiplies.
    """

    suffixes = (
        *(".weight_packed", ".weight", ".weight_scale"),
        *(".weight_global_scale", ".weight_scale_2"),
    )
    gives = ".weight"

    def __init__(self, method: str):
        self.method = method

    def holds(self, parts: Parts) -> bool:
        is_packed = ".weight" in parts and parts[".weight"].dtype == "U8"
        return ".weight_packed" in parts or (is_packed and ".weight_scale" in parts)

    def shape(self, parts: Parts) -> tuple[int, ...]:
        packed = self._packed(parts)
        expect(parts, packed, ("U8",), (None, None))
        outputs, inputs = parts[packed].shape[0], 2 * parts[packed].shape[1]
        expect(parts, ".weight_scale", ("F8_E4M3", "U8", "F8_E8M0"), (None, None))
        group = 16 if parts[".weight_scale"].dtype == "F8_E4M3" else 32
        if inputs % group:
            raise ValueError(f"it has {inputs} inputs; expected a multiple of {group}")
        expect(parts, ".weight_scale", (parts[".weight_scale"].dtype,), (outputs, inputs // group))
        for name in (".weight_global_scale", ".weight_scale_2"):
            if name in parts and parts[name].shape not in ((), (1,)):
                raise ValueError(
                    f"its {name[1:]} is {list(parts[name].shape)}; expected one number"
                )
        return outputs, inputs

    def bits(self, parts: Parts) -> float:
        return FLOAT_BITS if parts[".weight_scale"].dtype == "F8_E4M3" else MXFP4_BITS

    def weight(self, parts: Parts) -> Weight:
        self.shape(parts)
        packed, scales = parts[self._packed(parts)].read(), parts[".weight_scale"].read()
        if scales.dtype != torch.float8_e4m3fn:
            return mxfp4_rows(packed, scales.view(torch.uint8))
        factor = torch.ones(())
        if ".weight_scale_2" in parts:
            factor = parts[".weight_scale_2"].read().float()
        elif ".weight_global_scale" in parts:
            factor = 1 / parts[".weight_global_scale"].read().float()
        return float4_weight(packed, scales, factor.view(()))

    def _packed(self, parts: Parts) -> str:
        return ".weight_packed" if ".weight_packed" in parts else ".weight"


class Mxfp4Experts:
    """gpt-oss' experts: _blocks [E, M, K / 32, 16], neighbours in a byte, _scales [E, M, K / 32].

    One matrix of all experts, the outputs of one after those of the other.
    """

    method = "MXFP4"
    suffixes = ("_blocks", "_scales")
    gives = ""

    def holds(self, parts: Parts) -> bool:
        return "_blocks" in parts

    def shape(self, parts: Parts) -> tuple[int, ...]:
        expect(parts, "_blocks", ("U8",), (None, None, None, 16))
        experts, outputs, groups, _ = parts["_blocks"].shape
        expect(parts, "_scales", ("U8",), (experts, outputs, groups))
        return experts, outputs, groups * 32

    def bits(self, parts: Parts) -> float:
        return MXFP4_BITS

    def weight(self, parts: Parts) -> Weight:
        self.shape(parts)
        blocks, scales = parts["_blocks"].read(), parts["_scales"].read()
        return mxfp4_rows(blocks.flatten(2).flatten(0, 1), scales.flatten(0, 1))
