"""Products with packed quantised weights on a GPU, which become numbers in registers.

Reads the panels of csrc/quant_form.h as they are: the four codes of a word are four inputs of one
output, which is what a lane feeds to a matrix instruction. A block's codes are small integers,
which every type of activations holds: they are multiplied with activations, and the scales of the
block multiply the sums, in float32. No weight is ever rounded.

How sums are cut, and why a row's bits do not depend on its batch: see linear.py. Tiles are of 16
rows and two warps, for which the compiler takes the instructions of 16 x 8 x 16 on every card.
Knows no files.
"""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.sum_chunks import chunk_inputs, n_splits, sum_chunks
from specedge_kernels.quantized import FORMS, FP4, Form

BLOCK = tl.constexpr(32)  # inputs
# The tile, the same for every format and card. Chosen by cross-compiling: no spills, and 10 to 20
# KiB of a program's loads in flight. Not timed yet.
BLOCK_ROWS, BLOCK_OUTPUTS, BLOCKS, WARPS = 16, 64, 2, 2
# By the bits of a code.
STAGES = {4: 6, 5: 5, 6: 5, 8: 5}
REGISTERS = {4: 128, 5: 168, 6: 168, 8: 128}
PROGRAMS = 4  # that a multiprocessor should have at least


@triton.jit(do_not_specialize=["rows", "chunks_per_item"])
def quantized_linear_kernel(
    x,  # [N, K]
    packed,  # u8: panels of 8 outputs
    words,  # i32, the same memory
    bias,  # [M]; not read unless BIAS
    out,  # [N, stride]
    parts,  # [chunks, N, M] f32; written in place of out where each chunk is an item of its own
    rows,
    inputs,
    outputs,
    stride,
    chunk,  # inputs of a chunk
    chunks_per_item,  # all of them, or 1
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # blocks of a group
    HALVES: tl.constexpr,
    FACTORS: tl.constexpr,
    OFFSET: tl.constexpr,
    TABLE: tl.constexpr,  # (), or what codes stand for: four words of four signed bytes
    FP4: tl.constexpr,  # codes are floats of four bits, doubled
    # "", or how four bytes become numbers. Not a tuple: Triton 3.6 cannot pass on strings from one.
    LOW_ASSEMBLY: tl.constexpr,
    HIGH_ASSEMBLY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCKS: tl.constexpr,  # of one turn of the loop
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of BLOCKS blocks
    BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    DOT: tl.constexpr = tl.float32 if UPCAST else x.dtype.element_ty
    CODES: tl.constexpr = 8 * FACTORS  # where the codes of a block begin
    BLOCK_BYTES: tl.constexpr = CODES + 32 * BITS
    HEAD: tl.constexpr = 16 * HALVES
    WIDTH: tl.constexpr = 32 if BITS == 8 else 16  # inputs of one product
    GROUP_BYTES: tl.constexpr = HEAD + GROUP * BLOCK_BYTES
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, WIDTH)
    is_row, is_output = row < rows, m < outputs
    x_at = x + row.to(tl.int64)[:, None] * inputs + k[None, :]
    # Panels beyond the last repeat it, and are not stored.
    panel_bytes = (inputs // (BLOCK * GROUP)).to(tl.int64) * GROUP_BYTES
    last = tl.cdiv(outputs, 8) - 1
    first_panel = tl.program_id(1) * (BLOCK_M // 8)
    panel = tl.minimum(first_panel + tl.arange(0, BLOCK_M) // 8, last) * panel_bytes
    word = tl.arange(0, BLOCK_M) % 8 * 4
    codes_at = packed + (panel + word + CODES)[:, None] + (k // 4 * 32 + k % 4)[None, :]
    bits_at = packed + (panel + word + CODES + 128)[:, None] + (k % 4)[None, :]
    pair = tl.arange(0, BLOCK_M // 2)  # of halves in a word
    halves_at = words + tl.minimum(first_panel + pair // 4, last) * (panel_bytes // 4) + pair % 4
    four = tl.arange(0, BLOCK_M // 4)  # factors in a word
    factors_at = words + tl.minimum(first_panel + four // 2, last) * (panel_bytes // 4) + four % 2

    first = tl.program_id(2) * chunks_per_item * chunk
    end = tl.minimum(first + chunks_per_item * chunk, inputs)
    total = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    chunk_end = first + chunk
    for turn in tl.range(first, end, BLOCK * BLOCKS, num_stages=STAGES):
        for i in tl.static_range(BLOCKS):
            begin = turn + BLOCK * i
            used = is_row
            if not WHOLE:  # beyond the last block once more the last, times zero
                used = row < tl.where(begin < end, rows, 0)
                begin = tl.minimum(begin, end - BLOCK)
            block = begin // BLOCK
            group = block // GROUP * GROUP_BYTES
            place = group + HEAD + block % GROUP * BLOCK_BYTES
            xs = tl.trans(tl.load(x_at + begin, mask=used[:, None], other=0).to(DOT))
            stored = tl.load(codes_at + place)
            if BITS == 8:
                low = stored.to(tl.int8, bitcast=True).to(tl.float32).to(DOT)
                products = tl.dot(low, xs, input_precision="ieee")
            else:
                xs_2 = tl.load(x_at + begin + WIDTH, mask=used[:, None], other=0)
                xs_2 = tl.trans(xs_2.to(DOT))
                low, high = stored & 15, stored >> 4
                if BITS == 5:
                    fifth = tl.load(bits_at + place)
                    shift = (k // 4)[None, :].to(tl.uint8)
                    low |= (fifth >> shift & 1) << 4
                    high |= (fifth >> (shift + 4) & 1) << 4
                if BITS == 6:
                    shift = (k // 4 * 2)[None, :].to(tl.uint8)
                    low |= (tl.load(bits_at + place) >> shift & 3) << 4
                    high |= (tl.load(bits_at + place + 32) >> shift & 3) << 4
                if LOW_ASSEMBLY != "":
                    low = four_numbers(stored, DOT, OFFSET, LOW_ASSEMBLY)
                    high = four_numbers(stored, DOT, OFFSET, HIGH_ASSEMBLY)
                else:
                    low = number(low, x.dtype.element_ty, DOT, OFFSET, TABLE, FP4)
                    high = number(high, x.dtype.element_ty, DOT, OFFSET, TABLE, FP4)
                products = tl.dot(low, xs, input_precision="ieee")

            if FACTORS > 0:
                factors = bytes_of(tl.load(factors_at + place // 4))
            if FACTORS == 2:
                factors_2 = bytes_of(tl.load(factors_at + place // 4 + 2))
            if HALVES == 0:
                scale = half_power_of_two(factors)
            else:
                scale = halves_of(tl.load(halves_at + group // 4))
            if HALVES == 1 and FACTORS == 2:
                # Sixteen inputs each have a scale of their own.
                products_2 = tl.dot(high, xs_2, input_precision="ieee")
                sums += products_2 * (scale * signed(factors_2))[:, None]
            elif BITS < 8:
                products = tl.dot(high, xs_2, products, input_precision="ieee")
            if HALVES > 0 and FACTORS > 0:
                scale *= signed(factors)
            sums += products * scale[:, None]
            if HALVES == 2:
                minimum = halves_of(tl.load(halves_at + group // 4 + 4))
                if FACTORS == 2:
                    minimum *= -signed(factors_2)
                # As a product with ones the sums of activations come where they are wanted. Ones
                # are spelled with codes (a byte shifted out: 0) to have the layout of the others.
                ones = (stored >> 4 >> 4).to(tl.float32).to(DOT) + 1.0
                x_sums = tl.dot(ones, xs, input_precision="ieee")
                x_sums = tl.dot(ones, xs_2, x_sums, input_precision="ieee")
                sums += x_sums * minimum[:, None]
        if turn + BLOCK * BLOCKS == chunk_end:
            total += sums
            sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
            chunk_end += chunk
    total += sums

    stored_at = is_row[None, :] & is_output[:, None]
    if first == 0 and end == inputs:
        if BIAS:
            total += tl.load(bias + m, mask=is_output, other=0).to(tl.float32)[:, None]
        place = row.to(tl.int64)[None, :] * stride + m[:, None]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=stored_at)
    else:
        parts += tl.program_id(2).to(tl.int64) * rows * outputs
        place = row.to(tl.int64)[None, :] * outputs + m[:, None]
        tl.store(parts + place, total, mask=stored_at)


@triton.jit
def number(
    code,
    TYPE: tl.constexpr,
    DOT: tl.constexpr,
    OFFSET: tl.constexpr,
    TABLE: tl.constexpr,
    FP4: tl.constexpr,
):
    """What codes [..] u8 of up to 6 bits stand for, as DOT; exact in TYPE already."""
    if FP4:
        # Exponent and mantissa become those of a tiny number, subnormal where they are.
        bits = (code.to(tl.int32) & 7) << 22 | (code.to(tl.int32) & 8) << 28
        return (bits.to(tl.float32, bitcast=True) * 2.0**127).to(DOT)
    elif len(TABLE) > 0:
        low = tl.where(code < 4, TABLE[0], TABLE[1])
        word = tl.where(code < 8, low, tl.where(code < 12, TABLE[2], TABLE[3]))
        return (word >> ((code & 3) * 8).to(tl.int32)).to(tl.int8).to(tl.float32).to(DOT)
    elif TYPE.primitive_bitwidth == 32:
        return code.to(tl.float32) - OFFSET
    else:
        # The code as the lowest bits of 128 + code, or of 1024 + code.
        LEAST: tl.constexpr = 128 if TYPE.is_bf16() else 1024
        bits = code.to(tl.int16) | (0x4300 if TYPE.is_bf16() else 0x6400)
        return bits.to(TYPE, bitcast=True).to(DOT) - (LEAST + OFFSET)


@triton.jit
def four_numbers(stored, DOT: tl.constexpr, OFFSET: tl.constexpr, ASSEMBLY: tl.constexpr):
    """`number` of one half of each byte, two at a time: the compiler would take them singly."""
    if DOT.is_bf16():
        codes = tl.inline_asm_elementwise(
            ASSEMBLY, "=r,=r,r", [stored], dtype=tl.bfloat16, is_pure=True, pack=4
        )
        return codes - (128.0 + OFFSET)
    else:
        codes = tl.inline_asm_elementwise(
            ASSEMBLY, "=r,=r,r", [stored], dtype=tl.float16, is_pure=True, pack=4
        )
        return codes - (1024.0 + OFFSET)


@triton.jit
def halves_of(words):
    """Words [X] i32 of two float16 each -> [2 X] f32."""
    low, high = words.to(tl.int16), (words >> 16).to(tl.int16)
    both = tl.join(low, high).reshape(2 * words.shape[0])
    return both.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def bytes_of(words):
    """Words [X] i32 -> their bytes [4 X], from 0 to 255 as i32."""
    even = tl.join(words & 255, words >> 16 & 255)
    odd = tl.join(words >> 8 & 255, words >> 24 & 255)
    return tl.join(even, odd).reshape(4 * words.shape[0])


@triton.jit
def signed(byte):
    """A byte 0 .. 255 that is an int8, as f32."""
    return ((byte ^ 128) - 128).to(tl.float32)


@triton.jit
def half_power_of_two(e):
    """2^(e - 128) for e in 0 .. 255: subnormal for 0 and 1."""
    bits = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23)
    return bits.to(tl.float32, bitcast=True)


def quantized_linear(
    x: Tensor,
    packed: Tensor,
    kinds: list[int],
    sizes: list[int],
    exact: bool,
    bias: Tensor | None = None,
) -> Tensor:
    """See `ops.quantized_linear`; activations are never rounded, so `exact` says nothing here."""
    (rows, inputs), outputs = x.shape, sum(sizes)
    out = x.new_empty(rows, outputs)
    first_byte, first = 0, 0
    for kind, size in zip(kinds, sizes, strict=True):
        form, end = FORMS[kind], first + size
        n_bytes = form.packed_bytes(size, inputs)
        part = packed[first_byte : first_byte + n_bytes]
        launch(x, part, form, None if bias is None else bias[first:end], out[:, first:end])
        first_byte, first = first_byte + n_bytes, end
    return out


def launch(x: Tensor, packed: Tensor, form: Form, bias: Tensor | None, out: Tensor) -> None:
    """A weight of one format; out [N, M] are columns of a contiguous tensor."""
    (rows, inputs), outputs = x.shape, out.shape[1]
    if out.numel() == 0:
        return
    row_tiles, tiles = triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(outputs, BLOCK_OUTPUTS)
    splits = n_splits(inputs, row_tiles * tiles // PROGRAMS, x.device)
    chunk = chunk_inputs(inputs)
    parts = x.new_empty(splits if splits > 1 else 0, rows, outputs, dtype=torch.float32)
    low_assembly, high_assembly = assembly(form, x.dtype)
    quantized_linear_kernel[(row_tiles, tiles, splits)](
        x,
        packed,
        packed.view(torch.int32),
        out if bias is None else bias,
        out,
        parts,
        rows,
        inputs,
        outputs,
        out.stride(0),
        chunk,
        1 if splits > 1 else triton.cdiv(max(inputs, 1), chunk),
        BITS=form.bits,
        GROUP=form.group,
        HALVES=form.halves,
        FACTORS=form.factors,
        OFFSET=form.offset,
        TABLE=words_of(form.table) if form.table and form.table != FP4 else (),
        FP4=form.table == FP4,
        LOW_ASSEMBLY=low_assembly,
        HIGH_ASSEMBLY=high_assembly,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_M=BLOCK_OUTPUTS,
        BLOCKS=BLOCKS,
        STAGES=STAGES[form.bits],
        WHOLE=inputs % (BLOCKS * BLOCK.value) == 0,
        BIAS=bias is not None,
        UPCAST=triton.knobs.runtime.interpret,
        num_warps=WARPS,
        maxnreg=REGISTERS[form.bits],
    )
    if splits > 1:
        sum_chunks(parts, bias, out)


def assembly(form: Form, dtype: torch.dtype) -> tuple[str, str]:
    """PTX that makes the low, or the high, four bits of four bytes into two pairs of dtype.

    Each comes as the lowest bits of 128, or of 1024 in float16, plus the code. Nothing where codes
    have other bits or meanings, and under the interpreter, which runs none.
    """
    if form.bits != 4 or form.table or dtype == torch.float32 or triton.knobs.runtime.interpret:
        return "", ""
    least = "0x43004300" if dtype == torch.bfloat16 else "0x64006400"
    # The first two bytes, and the last two, each in the lower half of 16 bits.
    low, high = (
        f"{{ .reg .b32 w, a, b; shr.u32 w, $2, {bits}; "
        "prmt.b32 a, w, 0, 0x4140; prmt.b32 b, w, 0, 0x4342; "
        f"lop3.b32 $0, a, 0x000F000F, {least}, 0xEA; "
        f"lop3.b32 $1, b, 0x000F000F, {least}, 0xEA; }}"
        for bits in (0, 4)
    )
    return low, high


def words_of(table: Sequence[int]) -> tuple[int, ...]:
    """16 signed bytes as four signed words."""
    return struct.unpack("<4i", struct.pack("<16b", *table))
