"""Products with several sets of packed quantised weights on a GPU.

Pairs are sorted by set as for `grouped_linear`; what a tile of one set computes is what
`quantized_linear` computes, from the same code, with the same cuts of the sum: a row has its bits.
Knows no experts and no adapters.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.quantized_linear import (
    FEW_ROWS,
    choose_tile,
    constants,
    packed_products,
)
from specedge_kernels.gpu.sort_pairs import sort_pairs
from specedge_kernels.gpu.sum_chunks import chunk_inputs
from specedge_kernels.quantized import FORMS, Form

REGISTERS = 168  # for six programs beside each other: fewer spill


@triton.jit
def grouped_quantized_linear_kernel(
    x,  # [N, K]
    packed,  # u8 [n_sets, set_words words]
    words,  # i32, the same memory
    bias,  # [n_sets, bias_stride] f32; not read unless BIAS
    pairs,
    tiles,
    out,  # [N * per_row, stride]
    inputs,
    outputs,
    n_sets,
    set_words,
    bias_stride,
    per_row,
    stride,
    chunk,
    FORM: tl.constexpr,
    NUMBERS: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Tiles of one set are next to each other: they share weights in the L2.
    entry = tiles + tl.program_id(0) * 3
    own = tl.load(entry)
    if own >= 0:
        at = tl.load(entry + 1) + tl.arange(0, TILE.rows)
        is_pair = at < tl.load(entry + 2)
        pair = tl.load(pairs + at, mask=is_pair, other=0)
        m = tl.program_id(1) * TILE.outputs + tl.arange(0, TILE.outputs)
        is_output = m < outputs
        OUTPUTS: tl.constexpr = TILE.outputs
        ROWS: tl.constexpr = TILE.rows
        sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
        if own < n_sets:
            x_row = x + (pair // per_row).to(tl.int64) * inputs
            its_words = own.to(tl.int64) * set_words
            sums = packed_products(
                *(x_row, is_pair, packed + its_words * 4, words + its_words, tl.program_id(1)),
                *(inputs, outputs, 0, inputs, chunk),
                *(FORM, NUMBERS, TILE, WHOLE, UPCAST),
            )
            if BIAS:
                its_bias = bias + own.to(tl.int64) * bias_stride + m
                sums += tl.load(its_bias, mask=is_output, other=0)[:, None]
        place = pair.to(tl.int64)[None, :] * stride + m[:, None]
        stored_at = is_pair[None, :] & is_output[:, None]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=stored_at)


def grouped_quantized_linear(
    x: Tensor,
    packed: Tensor,
    kinds: list[int],
    sizes: list[int],
    groups: Tensor,
    bias: Tensor | None,
    exact: bool,
) -> Tensor:
    """See `ops.grouped_quantized_linear`; activations are never rounded, whatever `exact` says."""
    out = x.new_empty(groups.numel(), sum(sizes))
    if out.numel() == 0:
        return out
    pairs, tiles = sort_pairs(groups, packed.shape[0], FEW_ROWS)
    flat, first_byte, first = packed.view(-1), 0, 0
    for kind, size in zip(kinds, sizes, strict=True):
        form, end = FORMS[kind], first + size
        its_bias = None if bias is None else bias[:, first:end]
        sets = (flat[first_byte:], packed.shape[1], packed.shape[0])
        launch(x, *sets, form, its_bias, groups.shape[1], pairs, tiles, out[:, first:end])
        first_byte, first = first_byte + form.packed_bytes(size, x.shape[1]), end
    return out


def launch(
    x: Tensor,
    packed: Tensor,
    set_bytes: int,
    n_sets: int,
    form: Form,
    bias: Tensor | None,
    per_row: int,
    pairs: Tensor,
    tiles: Tensor,
    out: Tensor,
) -> None:
    """Weights of one format, from packed on, which repeat every set_bytes; bias [E, M] f32 and
    out [N k, M] are columns."""
    inputs, outputs = x.shape[1], out.shape[1]
    if outputs == 0:
        return
    tile = choose_tile(form, FEW_ROWS)
    grid = (tiles.shape[0], triton.cdiv(outputs, tile.outputs))
    grouped_quantized_linear_kernel[grid](
        x,
        packed,
        packed.view(torch.int32),
        out if bias is None else bias,
        pairs,
        tiles,
        out,
        inputs,
        outputs,
        n_sets,
        set_bytes // 4,
        0 if bias is None else bias.stride(0),
        per_row,
        out.stride(0),
        chunk_inputs(inputs),
        BIAS=bias is not None,
        **constants(form, x.dtype, inputs, tile) | {"maxnreg": REGISTERS},
    )
