"""The gate of a gated MLP on a GPU: silu(gate) * up, element by element."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_ELEMENTS = 1024


@triton.jit
def silu_mul_kernel(
    gate_up,  # [N, 2 * width]
    out,  # [N, width]
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + row * 2 * width + column
    gate = tl.load(source, mask=inside).to(tl.float32)
    up = tl.load(source + width, mask=inside).to(tl.float32)
    tl.store(
        out + row * width + column,
        (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty),
        mask=inside,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    if out.numel():
        block = min(BLOCK_ELEMENTS, triton.next_power_of_2(width))
        silu_mul_kernel[(rows, triton.cdiv(width, block))](gate_up, out, width, BLOCK=block)
    return out
