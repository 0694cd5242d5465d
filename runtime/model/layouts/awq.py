"""AWQ."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from runtime.model.formats import Weight
from runtime.model.integer_weight import Integers, unpacked
from runtime.model.layouts.layout import (
    FLOATS,
    Q5_0_BITS,
    Parts,
    evenly,
    expect,
    group_length,
    lengths,
)

_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)  # where the outputs 0 .. 7 lie in a word


class Awq:
    """Codes of 4 bits along the outputs, eight to a word and in an order of their own.

    arXiv:2306.00978, as AutoAWQ's "gemm" saves it: qweight [K, M / 8], qzeros [G, M / 8],
    scales [G, M].
    """

    method = "AWQ"
    suffixes = (".qweight", ".qzeros", ".scales")
    gives = ".weight"

    def __init__(self, fields: Mapping[str, Any]):
        version = str(fields.get("version") or "gemm").lower()
        if version != "gemm" or fields.get("bits", 4) != 4:
            raise ValueError(
                f"version {version!r} of {fields.get('bits', 4)} bits is not supported; expected "
                "'gemm' of 4"
            )
        self.told = lengths(fields.get("group_size"))

    def holds(self, parts: Parts) -> bool:
        return ".qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, ...]:
        expect(parts, ".scales", FLOATS, (None, None))
        expect(parts, ".qweight", ("I32",), (None, None))
        groups, outputs = parts[".scales"].shape
        inputs = parts[".qweight"].shape[0]
        if outputs % 8:
            raise ValueError(f"it has {outputs} outputs; expected a multiple of 8")
        expect(parts, ".qweight", ("I32",), (inputs, outputs // 8))
        expect(parts, ".qzeros", ("I32",), (groups, outputs // 8))
        group_length(inputs, groups, self.told)
        return outputs, inputs

    def bits(self, parts: Parts) -> float:
        return Q5_0_BITS

    def weight(self, parts: Parts) -> Weight:
        _, inputs = self.shape(parts)
        qweight, scales = parts[".qweight"].read(), parts[".scales"].read().T
        groups = evenly(inputs, scales.shape[1], self.told)

        def codes(first: int, last: int) -> Tensor:
            start = first // 8
            some = in_order(qweight[:, start : -(-last // 8)])
            return some[:, first - 8 * start : last - 8 * start].T

        def in_order(words: Tensor) -> Tensor:
            eights: Tensor = unpacked(words, 4).unflatten(1, (-1, 8))
            return eights[..., _COLUMNS].flatten(1)

        zeros = in_order(parts[".qzeros"].read()).T.short()
        return Integers(codes, zeros, scales, groups, 4).weight()
