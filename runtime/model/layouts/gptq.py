"""GPTQ."""

from collections.abc import Mapping
from typing import Any

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
    lengths,
)

_WORD_OF_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


class Gptq:
    """Codes along the inputs, eight (of 4 bits) to a word: arXiv:2210.17323, as AutoGPTQ saves it.

    qweight [K bits / 32, M], qzeros [G, M bits / 32], scales [G, M], and g_idx [K] where inputs
    were taken in another order. The first version of the files has zero points less one.
    """

    method = "GPTQ"
    suffixes = (".qweight", ".qzeros", ".scales", ".g_idx")
    gives = ".weight"

    def __init__(self, fields: Mapping[str, Any]):
        self.format = fields.get("checkpoint_format") or "gptq"
        if self.format not in ("gptq", "gptq_v2") or fields.get("is_marlin_format"):
            raise ValueError(f"{self.format!r} is not supported; expected 'gptq' or 'gptq_v2'")
        self.in_other_order = bool(fields.get("desc_act"))
        self.told = lengths(fields.get("group_size"))

    def holds(self, parts: Parts) -> bool:
        return ".qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, ...]:
        expect(parts, ".scales", FLOATS, (None, None))
        expect(parts, ".qweight", ("I32",), (None, None))
        groups, outputs = parts[".scales"].shape
        words, bits = parts[".qweight"].shape[0], self._bits(parts)
        inputs = words * 32 // bits
        expect(parts, ".qweight", ("I32",), (words, outputs))
        expect(parts, ".qzeros", ("I32",), (groups, outputs * bits // 32))
        if ".g_idx" in parts:
            expect(parts, ".g_idx", ("I32", "I64"), (inputs,))
        else:
            group_length(inputs, groups, self.told)
        return outputs, inputs

    def bits(self, parts: Parts) -> float:
        if self.in_other_order and ".g_idx" in parts:
            return FLOAT_BITS
        return Q8_0_BITS if self._bits(parts) == 8 else Q5_0_BITS

    def weight(self, parts: Parts) -> Weight:
        (_, inputs), bits = self.shape(parts), self._bits(parts)
        qweight, qzeros = parts[".qweight"].read(), parts[".qzeros"].read()
        if self.format == "gptq":
            # one was taken from each zero point of a word at once, with what that borrowed
            qzeros += _WORD_OF_ONES[bits]
        scales = parts[".scales"].read().T
        if ".g_idx" in parts:
            groups = parts[".g_idx"].read().long()
        else:
            groups = evenly(inputs, scales.shape[1], self.told)

        def codes(first: int, last: int) -> Tensor:
            return unpacked(qweight[:, first:last].T, bits)

        return Integers(codes, unpacked(qzeros, bits).T.short(), scales, groups, bits).weight()

    def _bits(self, parts: Parts) -> int:
        expect(parts, ".qzeros", ("I32",), (None, None))
        words, outputs = parts[".qzeros"].shape[1], parts[".scales"].shape[1]
        for bits in _WORD_OF_ONES:
            if outputs and outputs * bits == words * 32:
                return bits
        raise ValueError(
            f"it has {outputs} outputs in {words} words of zero points; expected 4 or 8 bits each"
        )
