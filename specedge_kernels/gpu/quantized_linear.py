"""Products with packed quantised weights on a GPU, which become numbers in registers.

Reads the panels of csrc/quant_form.h as they are: the four codes of a word are four inputs of one
output, which is what a lane feeds to a matrix instruction. A block's codes are small integers,
which every type of activations holds: they are multiplied with activations, and the scales of the
block multiply the sums, in float32. No weight is ever rounded.

How sums are cut, and why a row's bits do not depend on its batch: see linear.py. Two warps make the
compiler take the instructions of 16 x 8 x 16 on every card, and in tiles of 16 rows as in those of
32 the same ones make the number of a row. Knows no files.
"""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.sum_chunks import chunk_inputs, n_splits, sum_chunks
from specedge_kernels.quantized import FORMS, Form

BLOCK = tl.constexpr(32)  # inputs
# Of assembly: two words of low codes, two of high ones; codes, bits above, bits above, a shift.
PLACES = tl.constexpr("=r,=r,=r,=r,r,r,r,r")
# The tile, of the same outputs and inputs for every format, card and number of rows. Chosen by
# cross-compiling: no spills, and 10 to 20 KiB of a program's loads in flight. Not timed yet.
BLOCK_OUTPUTS, BLOCKS, WARPS = 64, 2, 2
FEW_ROWS, MANY_ROWS = 16, 32  # more rows share what was unpacked, and take more registers
# By the bits of a code.
STAGES = {4: 6, 5: 5, 6: 5, 8: 5}
REGISTERS = {4: 128, 5: 168, 6: 168, 8: 128}  # for few rows
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
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,
    FACTORS: tl.constexpr,
    OFFSET: tl.constexpr,
    TABLE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row, is_output = row < rows, m < outputs
    first = tl.program_id(2) * chunks_per_item * chunk
    end = tl.minimum(first + chunks_per_item * chunk, inputs)
    x_row = x + row.to(tl.int64) * inputs
    total = packed_products(
        *(x_row, is_row, packed, words, tl.program_id(1), inputs, outputs, first, end, chunk),
        *(BITS, GROUP, HALVES, FACTORS, OFFSET, TABLE, ASSEMBLY),
        *(BLOCK_ROWS, BLOCK_M, BLOCKS, STAGES, WHOLE, UPCAST),
    )

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
def packed_products(
    x_row,  # [BLOCK_ROWS] pointers
    is_row,
    packed,  # u8: panels of 8 outputs
    words,  # i32, the same memory
    tile,  # of BLOCK_M outputs
    inputs,
    outputs,
    first,  # input
    end,
    chunk,  # inputs of a chunk
    BITS: tl.constexpr,
    GROUP: tl.constexpr,  # blocks of a group
    HALVES: tl.constexpr,
    FACTORS: tl.constexpr,
    OFFSET: tl.constexpr,
    TABLE: tl.constexpr,  # (), or what codes stand for: four words of four signed bytes
    ASSEMBLY: tl.constexpr,  # "", or how the codes of four bytes become numbers
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCKS: tl.constexpr,  # of one turn of the loop
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of BLOCKS blocks
    UPCAST: tl.constexpr,
):
    """Rows times a tile of outputs [BLOCK_M, BLOCK_ROWS] f32: chunks one by one, added in order."""
    TYPE: tl.constexpr = x_row.dtype.element_ty
    DOT: tl.constexpr = tl.float32 if UPCAST else TYPE
    CODES: tl.constexpr = 8 * FACTORS  # where the codes of a block begin
    BLOCK_BYTES: tl.constexpr = CODES + 32 * BITS
    HEAD: tl.constexpr = 16 * HALVES
    MASK: tl.constexpr = 2 ** (BITS - 4) - 1  # of the bits above the fourth
    WIDTH: tl.constexpr = 32 if BITS == 8 else 16  # inputs of one product
    GROUP_BYTES: tl.constexpr = HEAD + GROUP * BLOCK_BYTES
    k = tl.arange(0, WIDTH)
    x_at = x_row[:, None] + k[None, :]
    # Panels beyond the last repeat it, and are not stored.
    panel_bytes = (inputs // (BLOCK * GROUP)).to(tl.int64) * GROUP_BYTES
    last = tl.cdiv(outputs, 8) - 1
    first_panel = tile * (BLOCK_M // 8)
    panel = tl.minimum(first_panel + tl.arange(0, BLOCK_M) // 8, last) * panel_bytes
    word = tl.arange(0, BLOCK_M) % 8 * 4
    codes_at = packed + (panel + word + CODES)[:, None] + (k // 4 * 32 + k % 4)[None, :]
    bits_at = packed + (panel + word + CODES + 128)[:, None] + (k % 4)[None, :]
    pair = tl.arange(0, BLOCK_M // 2)  # of halves in a word
    halves_at = words + tl.minimum(first_panel + pair // 4, last) * (panel_bytes // 4) + pair % 4
    four = tl.arange(0, BLOCK_M // 4)  # factors in a word
    factors_at = words + tl.minimum(first_panel + four // 2, last) * (panel_bytes // 4) + four % 2

    total = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_ROWS], tl.float32)
    chunk_end = first + chunk
    for turn in tl.range(first, end, BLOCK * BLOCKS, num_stages=STAGES):
        for i in tl.static_range(BLOCKS):
            begin = turn + BLOCK * i
            used = is_row
            if not WHOLE:  # beyond the last block once more the last, times zero
                used = tl.where(begin < end, is_row, False)
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
                above = stored  # the bits above the fourth, of low and of high codes
                if BITS > 4:
                    above = tl.load(bits_at + place)
                above_2 = above
                if BITS == 6:
                    above_2 = tl.load(bits_at + place + 32)
                shift = (k // 4 * (BITS - 4))[None, :].to(tl.uint8)
                if ASSEMBLY != "":
                    low, high = numbers(stored, above, above_2, shift, DOT, TABLE, OFFSET, ASSEMBLY)
                else:
                    low, high = stored & 15, stored >> 4
                    if BITS > 4:
                        low |= (above >> shift & MASK) << 4
                        next_shift = shift if BITS == 6 else shift + 4
                        high |= (above_2 >> next_shift & MASK) << 4
                    low = number(low, TYPE, DOT, OFFSET, TABLE)
                    high = number(high, TYPE, DOT, OFFSET, TABLE)
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
    return total


@triton.jit
def number(
    code,
    TYPE: tl.constexpr,
    DOT: tl.constexpr,
    OFFSET: tl.constexpr,
    TABLE: tl.constexpr,
):
    """What codes [..] u8 of up to 6 bits stand for, as DOT; exact in TYPE already."""
    if len(TABLE) > 0:
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
def numbers(
    stored,
    above,
    above_2,
    shift,
    DOT: tl.constexpr,
    TABLE: tl.constexpr,
    OFFSET: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """`number` of both codes of each byte, as `assembly` says."""
    given = [stored, above, above_2, shift]
    if DOT.is_bf16():
        low, high = tl.inline_asm_elementwise(
            ASSEMBLY, PLACES, given, dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            ASSEMBLY, PLACES, given, dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    if len(TABLE) == 0:
        LEAST: tl.constexpr = (128.0 if DOT.is_bf16() else 1024.0) + OFFSET
        low, high = low - LEAST, high - LEAST
    return low, high


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
    """2^(e - 128) for e in 0 .. 255: subnormal for 0 and 1, where the second is the larger."""
    return tl.maximum((e - 1) << 23, (e + 1) << 21).to(tl.float32, bitcast=True)


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
    # Minima take too many registers for the larger tile to be worth it.
    block_rows = FEW_ROWS if rows <= FEW_ROWS or form.halves == 2 else MANY_ROWS
    row_tiles, tiles = triton.cdiv(rows, block_rows), triton.cdiv(outputs, BLOCK_OUTPUTS)
    splits = n_splits(inputs, row_tiles * tiles // PROGRAMS, x.device)
    chunk = chunk_inputs(inputs)
    parts = x.new_empty(splits if splits > 1 else 0, rows, outputs, dtype=torch.float32)
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
        **constants(form, x.dtype, inputs, block_rows),
        BIAS=bias is not None,
    )
    if splits > 1:
        sum_chunks(parts, bias, out)


def constants(form: Form, dtype: torch.dtype, inputs: int, block_rows: int) -> dict[str, object]:
    """What a kernel of `packed_products` is compiled for, and the compiler's options."""
    return {
        "BITS": form.bits,
        "GROUP": form.group,
        "HALVES": form.halves,
        "FACTORS": form.factors,
        "OFFSET": form.offset,
        "TABLE": words_of(form.table) if form.table else (),
        "ASSEMBLY": assembly(form, dtype),
        "BLOCK_ROWS": block_rows,
        "BLOCK_M": BLOCK_OUTPUTS,
        "BLOCKS": BLOCKS,
        "STAGES": STAGES[form.bits],
        "WHOLE": inputs % (BLOCKS * BLOCK.value) == 0,
        "UPCAST": triton.knobs.runtime.interpret,
        "num_warps": WARPS,
        "maxnreg": REGISTERS[form.bits] if block_rows == FEW_ROWS else 255,
    }


def assembly(form: Form, dtype: torch.dtype) -> str:
    """PTX that makes the codes of four bytes into four pairs of dtype, of low codes, then of high.

    The compiler would take them singly. Nothing for codes of eight bits, for float32 and under the
    interpreter, which runs none.
    """
    if form.bits == 8 or dtype == torch.float32 or triton.knobs.runtime.interpret:
        return ""
    lines = table_lines(form.table, dtype) if form.table else code_lines(form.bits, dtype)
    return f"{{ .reg .b32 {', '.join(registers_of(lines))}; {'; '.join(lines)}; }}"


def code_lines(bits: int, dtype: torch.dtype) -> list[str]:
    """Codes as the lowest bits of 128, or of 1024 in float16, plus the code."""
    least = "0x43004300" if dtype == torch.bfloat16 else "0x64006400"
    lines = ["shr.u32 next, $4, 4"]
    if bits > 4:
        # A byte has the bits of several words: those of this one go to the place of the fifth.
        lines += ["shf.r.wrap.b32 low, $5, 0, $7", "shl.b32 low, low, 4"]
        lines += [f"shf.r.wrap.b32 high, ${bits}, 0, $7"]  # of five, the same byte's upper half
        lines += ["shl.b32 high, high, 4"] if bits == 6 else []
    mask = "0x00100010" if bits == 5 else "0x00300030"
    for first, word, above in ((0, "$4", "low"), (2, "next", "high")):
        # The first two bytes, and the last two, each in the lower half of 16 bits.
        for i, chosen in enumerate(("0x4140", "0x4342")):
            lines += [f"prmt.b32 pair, {word}, 0, {chosen}"]
            lines += [f"lop3.b32 ${first + i}, pair, 0x000F000F, {least}, 0xEA"]
            if bits > 4:
                lines += [f"prmt.b32 pair, {above}, 0, {chosen}"]
                lines += [f"lop3.b32 ${first + i}, pair, {mask}, ${first + i}, 0xEA"]
    return lines


def table_lines(table: Sequence[int], dtype: torch.dtype) -> list[str]:
    """Codes as places of a table, each byte of whose numbers is looked up for four codes at once.

    A selection among eight bytes takes three bits of a code; the fourth selects from two of them.
    An instruction takes one constant from where it keeps those that all lanes share, and has two
    here: the first is made to look like a lane's own, which the compiler keeps in a register.
    """
    numbers = torch.tensor(table, dtype=dtype).view(torch.uint8).view(16, 2)
    # No lane has 32 lanes below it.
    lines = ["mov.u32 nothing, %lanemask_lt", "and.b32 nothing, nothing, 0x80000000"]
    lines += ["and.b32 places, $4, 0x77777777"]
    lines += ["shr.u32 sides, $4, 1", "lop3.b32 sides, sides, 0x44444444, 0x32103210, 0xEA"]
    for i in (0, 1):  # the first two bytes, the last two
        for name, column in (("lower", 0), ("upper", 1)):
            first, second = (words_of_bytes(part) for part in numbers[:, column].view(2, 8))
            lines += [f"xor.b32 first, nothing, {first[0]}"]
            lines += [f"prmt.b32 {name}, first, {first[1]}, places"]
            if second != first:
                lines += [f"xor.b32 first, nothing, {second[0]}"]
                lines += [f"prmt.b32 other, first, {second[1]}, places"]
                lines += [f"prmt.b32 {name}, {name}, other, sides"]
        lines += [f"prmt.b32 ${i}, lower, upper, 0x6240"]
        lines += [f"prmt.b32 ${2 + i}, lower, upper, 0x7351"]
        lines += ["shr.u32 places, places, 16", "shr.u32 sides, sides, 16"] if i == 0 else []
    return lines


def words_of_bytes(eight: Tensor) -> tuple[str, str]:
    first, second = struct.unpack("<2I", bytes(eight.tolist()))
    return f"0x{first:08X}", f"0x{second:08X}"


def registers_of(lines: list[str]) -> list[str]:
    """What the lines write to, but for the results."""
    written = [line.split()[1].strip(",") for line in lines]
    return sorted({name for name in written if not name.startswith("$")})


def words_of(table: Sequence[int]) -> tuple[int, ...]:
    """16 signed bytes as four signed words."""
    return struct.unpack("<4i", struct.pack("<16b", *table))
