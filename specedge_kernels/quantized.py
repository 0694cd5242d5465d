"""Weights that stay as they are quantised: the formats, and a packed weight.

Formats go by ggml's numbers (`gguf.GGMLQuantizationType`), from 256 on by our own; their packed
layout is drawn in csrc/quant_form.h. Knows nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

COLUMNS = 8  # outputs that lie side by side in packed weights
BLOCK = 32  # inputs that share one scale of the activations


@dataclass(frozen=True)
class Form:
    """A format: value = scale * (code - offset), or scale * code + minimum.

    `group` blocks of 32 weights share `halves` float16 numbers (the scale and perhaps the minimum);
    each block has `factors` bytes of its own that these are multiplied by. Of float8 codes (e4m3),
    which are numbers themselves, a group shares one float32 scale.
    """

    name: str
    stored_bytes: int  # of a group of one output in a file
    bits: int
    group: int
    halves: int
    factors: int
    offset: int = 0
    table: tuple[int, ...] | None = None  # what the codes stand for
    float8: bool = False

    @property
    def inputs(self) -> int:
        """Weights of a group."""
        return BLOCK * self.group

    @property
    def head_bytes(self) -> int:
        """Of what the blocks of a group share, of 8 outputs, packed."""
        return COLUMNS * (4 if self.float8 else 2 * self.halves)

    @property
    def block_bytes(self) -> int:
        """Of a block of 32 weights of 8 outputs, packed."""
        return COLUMNS * (self.factors + 4 * self.bits)

    @property
    def group_bytes(self) -> int:
        return self.head_bytes + self.group * self.block_bytes

    def packed_bytes(self, outputs: int, inputs: int) -> int:
        return -(-outputs // COLUMNS) * (inputs // self.inputs) * self.group_bytes


NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled

FORMS = {
    2: Form("Q4_0", 18, 4, 1, 1, 0, offset=8),
    3: Form("Q4_1", 20, 4, 1, 2, 0),
    6: Form("Q5_0", 22, 5, 1, 1, 0, offset=16),
    7: Form("Q5_1", 24, 5, 1, 2, 0),
    8: Form("Q8_0", 34, 8, 1, 1, 0),
    12: Form("Q4_K", 144, 4, 8, 2, 2),
    13: Form("Q5_K", 176, 5, 8, 2, 2),
    14: Form("Q6_K", 210, 6, 8, 1, 2, offset=32),
    20: Form("IQ4_NL", 18, 4, 1, 1, 0, table=NONLINEAR),
    23: Form("IQ4_XS", 136, 4, 8, 1, 1, table=NONLINEAR),
    39: Form("MXFP4", 17, 4, 1, 0, 1, table=FP4),
    256: Form("FP8", 132, 8, 4, 0, 0, float8=True),
    257: Form("FP8_32", 36, 8, 1, 0, 0, float8=True),
}


@dataclass(frozen=True)
class StoredWeight:
    """A weight [M, K] as a file has it: rows [M, bytes] uint8, and the format's number.

    Its rows can be looked up; a product needs them packed.
    """

    rows: Tensor
    kind: int


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [M, K] packed for `quantized_linear`: parts of one format each, one after the other.

    packed [bytes] uint8, as from `pack_quantized`, or [E, bytes] for `grouped_quantized_linear`;
    kinds and sizes: ggml's number of the format and the outputs of each part.
    """

    packed: Tensor
    kinds: tuple[int, ...]
    sizes: tuple[int, ...]
    in_features: int

    def to(self, device: torch.device | str) -> "QuantizedWeight":
        """The same weight on another device, which reads it as it is packed."""
        return replace(self, packed=self.packed.to(device))

    @property
    def out_features(self) -> int:
        return sum(self.sizes)

    @staticmethod
    def stacked(weights: Sequence["QuantizedWeight"]) -> "QuantizedWeight":
        """Weights of the same formats and shape as the sets of one grouped product.

        Raises ValueError if these differ, or if there are none.
        """
        if not weights:
            raise ValueError("expected at least one set of weights, got none")
        first = weights[0]
        for other in weights:
            one, another = ((w.kinds, w.sizes, w.in_features) for w in (first, other))
            if one != another:
                raise ValueError(
                    f"expected sets of the same formats and shape, got {one} and {another}"
                )
        packed = torch.stack([weight.packed for weight in weights])
        return QuantizedWeight(packed, first.kinds, first.sizes, first.in_features)

    @staticmethod
    def concatenated(weights: Sequence["QuantizedWeight"]) -> "QuantizedWeight":
        """Weights of the same inputs as one, with the outputs of each after those of the others.

        The formats may differ. Raises ValueError if the inputs do, or if there are no weights.
        """
        if not weights:
            raise ValueError("expected at least one weight, got none")
        for one, other in pairwise(weights):
            if one.in_features != other.in_features:
                raise ValueError(
                    f"expected weights of the same inputs, got {one.in_features} and "
                    f"{other.in_features}"
                )
        parts = [part for w in weights for part in zip(w.kinds, w.sizes, strict=True)]
        merged: list[tuple[int, int]] = []
        for kind, size in parts:
            # Whole panels of one format run on in the next part.
            if merged and merged[-1][0] == kind and merged[-1][1] % COLUMNS == 0:
                merged[-1] = (kind, merged[-1][1] + size)
            else:
                merged.append((kind, size))
        return QuantizedWeight(
            torch.cat([weight.packed for weight in weights]),
            tuple(kind for kind, _ in merged),
            tuple(size for _, size in merged),
            weights[0].in_features,
        )
