"""Products with packed quantised weights on a GPU, which become numbers in registers.

Reads the panels of csrc/quant_form.h as they are: the four codes of a word are four inputs of one
output, which is what a lane feeds to a matrix instruction. A block's codes are small integers,
or numbers of eight bits, which every type of activations holds: they are multiplied with
activations, and the scales of the block multiply the sums, in float32. No weight is ever rounded.

The inputs are cut into chunks at fixed places: a chunk's blocks are added from zero on, in
increasing k, and the chunks' sums in increasing order, in float32. Where tiles alone would leave
multiprocessors idle, each chunk is a work item of its own and a second kernel adds them: the same
sums in the same order. Two warps make the compiler take the instructions of 16 x 8 x 16 on every
card, and in tiles of 16 rows as in those of 32 the same ones make the number of a row: its bits
depend on no batch. Knows no files.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specedge_kernels.gpu.paged import float_of_e4m3
from specedge_kernels.gpu.sum_chunks import chunk_inputs, n_splits, sum_chunks
from specedge_kernels.quantized import FORMS, FP4, Form

BLOCK = tl.constexpr(32)  # inputs
# Of assembly: two words of low codes, two of high ones; codes, bits above, bits above, a shift.
PLACES = tl.constexpr("=r,=r,=r,=r,r,r,r,r")
FLOAT8_PLACES = tl.constexpr("=r,=r,r")  # two words of numbers; codes


@dataclass(frozen=True)
class PackedTile:
    rows: int
    outputs: int
    blocks: (
        int  # of 32 inputs, in one turn of the loop: groups of one block, or blocks of one group
    )
    stages: int  # turns in shared memory, one in use and the others in flight


# Of the same outputs and inputs for every format, card and number of rows. Chosen by
# cross-compiling: no spills, and 10 to 20 KiB of a program's loads in flight. Not timed yet.
FEW_ROWS, MANY_ROWS = 16, 32  # more rows share what was unpacked, and take more registers
WARPS = 2
PROGRAMS = 4  # that a multiprocessor should have at least


def choose_tile(form: Form, rows: int) -> PackedTile:
    # Minima take too many registers for the larger tile to be worth it.
    few = rows <= FEW_ROWS or form.halves == 2
    return PackedTile(FEW_ROWS if few else MANY_ROWS, outputs=64, blocks=4, stages=3)


@dataclass(frozen=True)
class Numbers:
    """How the codes of a format become numbers."""

    offset: int  # what codes exceed them by
    table: tuple[int, ...]  # or what codes stand for: four words of four signed bytes
    assembly: str  # or PTX that knows: see `assembly`

    @property
    def has_table(self) -> bool:
        return len(self.table) > 0


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
    FORM: tl.constexpr,
    NUMBERS: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    m = tl.program_id(1) * TILE.outputs + tl.arange(0, TILE.outputs)
    is_row, is_output = row < rows, m < outputs
    first = tl.program_id(2) * chunks_per_item * chunk
    end = tl.minimum(first + chunks_per_item * chunk, inputs)
    x_row = x + row.to(tl.int64) * inputs
    total = packed_products(
        *(x_row, is_row, packed, words, tl.program_id(1), inputs, outputs, first, end, chunk),
        *(FORM, NUMBERS, TILE, WHOLE, UPCAST),
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
    x_row,  # [TILE.rows] pointers
    is_row,
    packed,  # u8: panels of 8 outputs
    words,  # i32, the same memory
    tile,  # of TILE.outputs outputs
    inputs,
    outputs,
    first,  # input
    end,
    chunk,  # inputs of a chunk
    FORM: tl.constexpr,
    NUMBERS: tl.constexpr,  # how codes become numbers
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of the blocks of a turn
    UPCAST: tl.constexpr,
):
    """Rows times a tile of outputs [outputs, rows] f32: chunks one by one, added in order."""
    CODES: tl.constexpr = FORM.head_bytes + 8 * FORM.factors  # where the first block has its codes
    OUTPUTS: tl.constexpr = TILE.outputs
    ROWS: tl.constexpr = TILE.rows
    BLOCKS: tl.constexpr = TILE.blocks
    m = tl.arange(0, OUTPUTS)
    column, k = m % 8, tl.arange(0, 32 if FORM.bits == 8 else 16)
    # Panels beyond the last repeat it, and are not stored.
    panel_bytes = (inputs // (BLOCK * FORM.group)).to(tl.int64) * FORM.group_bytes
    last = tl.cdiv(outputs, 8) - 1
    first_panel = tile * (OUTPUTS // 8)
    panel = tl.minimum(first_panel + m // 8, last) * panel_bytes
    word = (panel + CODES + column * 4)[:, None]
    if FORM.float8:
        shared = panel // 4 + column  # a word for each output
    else:
        pair = tl.arange(0, OUTPUTS // 2)  # of halves in a word
        shared = tl.minimum(first_panel + pair // 4, last) * (panel_bytes // 4) + pair % 4
    places = (
        x_row[:, None] + k[None, :],
        packed + word + (k // 4 * 32 + k % 4)[None, :],  # codes
        packed + word + 128 + (k % 4)[None, :],  # bits above the fourth
        words + (panel + FORM.head_bytes) // 4 + column // 4,  # factors, of four outputs each
        words + shared,  # what the blocks of a group share
    )
    bits_below = column % 4 * 8  # the factor of an output in its word

    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    chunk_end = first + chunk
    turns_end = end if WHOLE else end // (BLOCK * BLOCKS) * (BLOCK * BLOCKS)
    for turn in tl.range(first, turns_end, BLOCK * BLOCKS, num_stages=TILE.stages):
        sums = add_blocks(sums, places, bits_below, is_row, turn, BLOCKS, FORM, NUMBERS, UPCAST)
        if turn + BLOCK * BLOCKS == chunk_end:
            total += sums
            sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
            chunk_end += chunk
    if not WHOLE:
        for turn in tl.range(turns_end, end, BLOCK, num_stages=1):
            sums = add_blocks(sums, places, bits_below, is_row, turn, 1, FORM, NUMBERS, UPCAST)
    total += sums
    return total


@triton.jit
def add_blocks(
    sums,  # [outputs, rows] f32
    places,  # of input 0
    bits_below,
    is_row,
    begin,  # input
    BLOCKS: tl.constexpr,
    FORM: tl.constexpr,
    NUMBERS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """sums and what some blocks of inputs add to them, one block after the other."""
    x_at, codes_at, bits_at, factors_at, shared_at = places
    TYPE: tl.constexpr = x_at.dtype.element_ty
    DOT: tl.constexpr = tl.float32 if UPCAST else TYPE
    WIDTH: tl.constexpr = 32 if FORM.bits == 8 else 16  # inputs of one product
    # Bytes from one block to the next, of the same group or of another.
    APART: tl.constexpr = FORM.group_bytes if FORM.group == 1 else FORM.block_bytes
    MASK: tl.constexpr = 2 ** (FORM.bits - 4) - 1  # of the bits above the fourth
    # From where the first block lies the others are at constants, which cost no instruction.
    block = begin // BLOCK
    group = block // FORM.group * FORM.group_bytes
    place = group + block % FORM.group * FORM.block_bytes
    x_at += begin
    codes_at += place
    bits_at += place
    factors_at += place // 4
    shared_at += group // 4
    for i in tl.static_range(BLOCKS):
        at = i * APART
        xs = tl.load(x_at + BLOCK * i, mask=is_row[:, None], other=0)
        xs = tl.trans(xs.to(DOT))
        stored = tl.load(codes_at + at)
        if FORM.float8:
            low = float8_numbers(stored, DOT, NUMBERS)
            if i % FORM.group == 0:
                products = tl.dot(low, xs, input_precision="ieee")
            else:
                products = tl.dot(low, xs, products, input_precision="ieee")
        elif FORM.bits == 8:
            low = stored.to(tl.int8, bitcast=True).to(tl.float32).to(DOT)
            products = tl.dot(low, xs, input_precision="ieee")
        else:
            xs_2 = tl.load(x_at + BLOCK * i + WIDTH, mask=is_row[:, None], other=0)
            xs_2 = tl.trans(xs_2.to(DOT))
            above = stored  # the bits above the fourth, of low and of high codes
            if FORM.bits > 4:
                above = tl.load(bits_at + at)
            above_2 = above
            if FORM.bits == 6:
                above_2 = tl.load(bits_at + at + 32)
            shift = (tl.arange(0, WIDTH) // 4 * (FORM.bits - 4))[None, :].to(tl.uint8)
            if NUMBERS.assembly != "":
                low, high = numbers(stored, above, above_2, shift, DOT, NUMBERS)
            else:
                low, high = stored & 15, stored >> 4
                if FORM.bits > 4:
                    low |= (above >> shift & MASK) << 4
                    next_shift = shift if FORM.bits == 6 else shift + 4
                    high |= (above_2 >> next_shift & MASK) << 4
                low = number(low, TYPE, DOT, NUMBERS)
                high = number(high, TYPE, DOT, NUMBERS)
            products = tl.dot(low, xs, input_precision="ieee")

        # Every output loads the word of its factors: a lane makes its own numbers and no others.
        if FORM.factors > 0:
            factors = tl.load(factors_at + at // 4) >> bits_below
        if FORM.factors == 2:
            factors_2 = tl.load(factors_at + at // 4 + 2) >> bits_below
        if FORM.float8:
            if i % FORM.group == 0:
                scale = tl.load(shared_at + at // 4).to(tl.float32, bitcast=True)
        elif FORM.halves == 0:
            scale = half_power_of_two(factors & 255)
        else:
            if FORM.group == 1 or i == 0:
                own_scale = halves_of(tl.load(shared_at + at // 4))
                if FORM.halves == 2:
                    own_minimum = halves_of(tl.load(shared_at + at // 4 + 4))
            scale = own_scale
        if FORM.halves == 1 and FORM.factors == 2:
            # Sixteen inputs each have a scale of their own.
            products_2 = tl.dot(high, xs_2, input_precision="ieee")
            sums += products_2 * (scale * signed(factors_2))[:, None]
        elif FORM.bits < 8:
            products = tl.dot(high, xs_2, products, input_precision="ieee")
        if FORM.halves > 0 and FORM.factors > 0:
            scale *= signed(factors)
        if not FORM.float8 or (i + 1) % FORM.group == 0:
            sums += products * scale[:, None]
        if FORM.halves == 2:
            minimum = own_minimum
            if FORM.factors == 2:
                minimum *= -signed(factors_2)
            # As a product with ones the sums of activations come where they are wanted.
            ones = ones_like(stored, TYPE, DOT)
            x_sums = tl.dot(ones, xs, input_precision="ieee")
            x_sums = tl.dot(ones, xs_2, x_sums, input_precision="ieee")
            sums += x_sums * minimum[:, None]
    return sums


@triton.jit
def ones_like(codes, TYPE: tl.constexpr, DOT: tl.constexpr):
    """Ones in the layout of what becomes of codes u8, which a constant would not have."""
    nothing = (codes >> 4 >> 4).to(tl.int16)
    if TYPE.primitive_bitwidth == 32:
        return nothing.to(tl.float32) + 1.0
    else:
        one = nothing | (0x3F80 if TYPE.is_bf16() else 0x3C00)
        return one.to(TYPE, bitcast=True).to(DOT)


@triton.jit
def number(code, TYPE: tl.constexpr, DOT: tl.constexpr, NUMBERS: tl.constexpr):
    """What codes [..] u8 of up to 6 bits stand for, as DOT; exact in TYPE already."""
    if NUMBERS.has_table:
        low = tl.where(code < 4, NUMBERS.table[0], NUMBERS.table[1])
        high = tl.where(code < 12, NUMBERS.table[2], NUMBERS.table[3])
        word = tl.where(code < 8, low, high)
        return (word >> ((code & 3) * 8).to(tl.int32)).to(tl.int8).to(tl.float32).to(DOT)
    elif TYPE.primitive_bitwidth == 32:
        return code.to(tl.float32) - NUMBERS.offset
    else:
        # The code as the lowest bits of 128 + code, or of 1024 + code.
        LEAST: tl.constexpr = 128 if TYPE.is_bf16() else 1024
        bits = code.to(tl.int16) | (0x4300 if TYPE.is_bf16() else 0x6400)
        return bits.to(TYPE, bitcast=True).to(DOT) - (LEAST + NUMBERS.offset)


@triton.jit
def numbers(stored, above, above_2, shift, DOT: tl.constexpr, NUMBERS: tl.constexpr):
    """`number` of both codes of each byte, as `assembly` says."""
    given = [stored, above, above_2, shift]
    if DOT.is_bf16():
        low, high = tl.inline_asm_elementwise(
            NUMBERS.assembly, PLACES, given, (tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            NUMBERS.assembly, PLACES, given, (tl.float16, tl.float16), is_pure=True, pack=4
        )
    if not NUMBERS.has_table:
        LEAST: tl.constexpr = (128.0 if DOT.is_bf16() else 1024.0) + NUMBERS.offset
        low, high = low - LEAST, high - LEAST
    return low, high


@triton.jit
def float8_numbers(stored, DOT: tl.constexpr, NUMBERS: tl.constexpr):
    """What codes u8 of e4m3 stand for, as DOT, which holds all of them."""
    if NUMBERS.assembly == "":
        return float_of_e4m3(stored).to(DOT)
    elif DOT.is_bf16():
        return tl.inline_asm_elementwise(
            NUMBERS.assembly, FLOAT8_PLACES, [stored], tl.bfloat16, is_pure=True, pack=4
        )
    else:
        return tl.inline_asm_elementwise(
            NUMBERS.assembly, FLOAT8_PLACES, [stored], tl.float16, is_pure=True, pack=4
        )


@triton.jit
def halves_of(words):
    """Words [X] i32 of two float16 each -> [2 X] f32."""
    low, high = words.to(tl.int16), (words >> 16).to(tl.int16)
    both = tl.join(low, high).reshape(2 * words.shape[0])
    return both.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def signed(word):
    """The lowest byte of i32, which is an int8, as f32."""
    return word.to(tl.int8).to(tl.float32)


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
    tile = choose_tile(form, rows)
    row_tiles, tiles = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)
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
        **constants(form, x.dtype, inputs, tile),
        BIAS=bias is not None,
    )
    if splits > 1:
        sum_chunks(parts, bias, out)


def constants(form: Form, dtype: torch.dtype, inputs: int, tile: PackedTile) -> dict[str, object]:
    """What a kernel of `packed_products` is compiled for, and the compiler's options."""
    few = 168 if form.bits in (5, 6) else 144 if form.group == 8 else 128
    return {
        "FORM": form,
        "NUMBERS": Numbers(form.offset, words_of(form.table), assembly(form, dtype)),
        "TILE": tile,
        "WHOLE": inputs % (tile.blocks * BLOCK.value) == 0,
        "UPCAST": triton.knobs.runtime.interpret,
        "num_warps": WARPS,
        "maxnreg": few if tile.rows == FEW_ROWS else 255,
    }


def assembly(form: Form, dtype: torch.dtype) -> str:
    """PTX that makes the codes of four bytes into four pairs of dtype, of low codes, then of high.

    Of float8, two pairs. The compiler would take them singly. Nothing for integers of eight bits,
    for float32 and under the interpreter, which runs none.
    """
    is_integer = form.bits == 8 and not form.float8
    if is_integer or dtype == torch.float32 or triton.knobs.runtime.interpret:
        return ""
    if form.float8:
        lines = float8_lines(dtype)
    elif form.table == FP4:
        lines = fp4_lines(dtype)
    else:
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


def fp4_lines(dtype: torch.dtype) -> list[str]:
    """Four-bit floats: sign, two bits of exponent and one of mantissa go to their places in dtype.

    There they are right but for the bias of the exponent, which a product with a power of two makes
    up for (subnormal numbers included), and doubles them as the table has them. Four codes at once:
    `upper` gets their upper bytes, `lower` the lower ones.
    """
    to, half = ("bf16x2", 0x7F00) if dtype == torch.bfloat16 else ("f16x2", 0x7800)
    lines = [f"mov.u32 power, 0x{half:04X}{half:04X}", "mov.u32 zero, 0x80008000"]
    for first, shift in ((0, 4), (2, 0)):  # low codes, high codes: left to the top of a byte
        lines += [shifted("sign", shift)]
        if dtype == torch.bfloat16:
            lines += [shifted("upper", shift - 6), "and.b32 upper, upper, 0x01010101"]
            lines += [shifted("lower", shift + 2), "and.b32 lower, lower, 0xC0C0C0C0"]
        else:
            lines += [shifted("upper", shift - 3), "and.b32 upper, upper, 0x0E0E0E0E"]
            lines += ["mov.u32 lower, 0"]
        lines += ["lop3.b32 upper, sign, 0x80808080, upper, 0xEA"]
        for i, chosen in enumerate(("0x5140", "0x7362")):
            lines += [f"prmt.b32 pair, lower, upper, {chosen}"]
            lines += [f"fma.rn.{to} ${first + i}, pair, power, zero"]
    return lines


def float8_lines(dtype: torch.dtype) -> list[str]:
    """Sign, four bits of exponent and three of mantissa go to their places in dtype.

    As in `fp4_lines` a product with a power of two mends the exponent.
    """
    to, power = ("bf16x2", 0x7B80) if dtype == torch.bfloat16 else ("f16x2", 0x5C00)
    right, mask = (4, "0x07070707") if dtype == torch.bfloat16 else (1, "0x3F3F3F3F")
    lowest = "0xF0F0F0F0" if dtype == torch.bfloat16 else "0x80808080"
    lines = [f"mov.u32 power, 0x{power:04X}{power:04X}", "mov.u32 zero, 0x80008000"]
    lines += ["and.b32 sign, $2, 0x80808080", f"shr.u32 upper, $2, {right}"]
    lines += [f"lop3.b32 upper, upper, {mask}, sign, 0xEA"]
    lines += [f"shl.b32 lower, $2, {8 - right}", f"and.b32 lower, lower, {lowest}"]
    for i, chosen in enumerate(("0x5140", "0x7362")):
        lines += [f"prmt.b32 pair, lower, upper, {chosen}"]
        lines += [f"fma.rn.{to} ${i}, pair, power, zero"]
    return lines


def shifted(name: str, left: int) -> str:
    """The line that makes the word of codes, shifted, into `name`."""
    return f"shl.b32 {name}, $4, {left}" if left >= 0 else f"shr.u32 {name}, $4, {-left}"


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


def words_of(table: Sequence[int] | None) -> tuple[int, ...]:
    """16 signed bytes as four signed words."""
    if table is None:
        return ()
    return struct.unpack("<4i", struct.pack("<16b", *table))
