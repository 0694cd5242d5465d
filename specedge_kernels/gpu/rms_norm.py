"""The residual sum and its RMS norm on a GPU: a program takes one row, so batches do not matter."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(
    x,  # [N, width]
    weight,  # [width]
    delta,  # [N, width]
    out,  # [N, width]
    eps,
    width,
    HAS_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    # The weight does not wait for the row.
    weights = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    row = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    if HAS_DELTA:
        row += tl.load(delta + place, mask=inside, other=0).to(tl.float32)
        stored = row.to(x.dtype.element_ty)
        tl.store(x + place, stored, mask=inside)
        row = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row) / width + eps)
    tl.store(out + place, (row * scale * weights).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Tensor:
    out = x.new_empty(x.shape)
    if x.numel():
        block = triton.next_power_of_2(x.shape[1])
        rms_norm_kernel[(x.shape[0],)](
            x,
            weight,
            x if delta is None else delta,
            out,
            eps,
            x.shape[1],
            HAS_DELTA=delta is not None,
            BLOCK=block,
            num_warps=min(16, max(1, block // 256)),
        )
    return out
