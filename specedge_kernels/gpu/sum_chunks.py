"""How a sum over the inputs of a product is cut, and the sum of the chunks' sums.

The cut follows from the number of inputs alone, so the sum of a row is the same in any batch,
beside any other outputs and on a card of any size. Knows no weights.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_CHUNK = 1024  # inputs: shorter ones would write more sums than they save waiting
MOST_CHUNKS = 8
CHUNK_UNIT = 256  # a multiple of every block of weights
BLOCK_OUTPUTS = 512


@triton.jit(do_not_specialize=["rows"])
def sum_chunks_kernel(
    parts,  # [n_chunks, N, M] f32
    bias,  # [M]; not read unless BIAS
    out,  # [N, stride]
    rows,
    outputs,
    stride,
    n_chunks,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    m = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = m < outputs
    place = row * outputs + m
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(n_chunks):
        total += tl.load(parts + place, mask=inside, other=0)
        parts += rows.to(tl.int64) * outputs
    if BIAS:
        total += tl.load(bias + m, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * stride + m, total.to(out.dtype.element_ty), mask=inside)


def sum_chunks(parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """parts [n_chunks, N, M] f32, added in order, and bias [M] -> out [N, M], in its type.

    The rows of out may lie apart."""
    n_chunks, rows, outputs = parts.shape
    sum_chunks_kernel[(rows, triton.cdiv(outputs, BLOCK_OUTPUTS))](
        parts,
        out if bias is None else bias,
        out,
        rows,
        outputs,
        out.stride(0),
        n_chunks,
        BIAS=bias is not None,
        BLOCK=BLOCK_OUTPUTS,
    )


def chunk_inputs(inputs: int) -> int:
    """Inputs of a chunk, the last of which may be shorter."""
    shortest: int = triton.cdiv(inputs, MOST_CHUNKS * CHUNK_UNIT) * CHUNK_UNIT
    return max(LEAST_CHUNK, shortest)


def n_splits(inputs: int, n_tiles: int, device: torch.device) -> int:
    """Items of a tile: one a chunk where `n_tiles` are fewer than multiprocessors, else one."""
    if n_tiles >= n_multiprocessors(device):
        return 1
    n_chunks: int = triton.cdiv(inputs, chunk_inputs(inputs))
    return max(n_chunks, 1)


def n_multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
