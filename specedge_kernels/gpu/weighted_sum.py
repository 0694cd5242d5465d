"""What the experts of a row gave, as one, on a GPU: every number is one chain in the order of k."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_COLUMNS = 512


@triton.jit
def weighted_sum_kernel(
    y,  # [N * parts, width]
    weights,  # [N, parts] f32
    out,  # [N, width]
    parts,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(parts):
        part = tl.load(y + (row * parts + j) * width + column, mask=inside, other=0)
        total += tl.load(weights + row * parts + j) * part.to(tl.float32)
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=inside)


def weighted_sum(y: Tensor, weights: Tensor) -> Tensor:
    rows, width = weights.shape[0], y.shape[1]
    out = y.new_empty(rows, width)
    if out.numel():
        block = min(BLOCK_COLUMNS, triton.next_power_of_2(width))
        # Without fused multiply-add every product and sum is rounded by itself.
        weighted_sum_kernel[(rows, triton.cdiv(width, block))](
            y, weights, out, weights.shape[1], width, BLOCK=block, enable_fp_fusion=False
        )
    return out
