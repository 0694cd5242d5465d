"""What the compiler makes of products: it fits, loads are in flight, and rows change nothing."""

import re
from collections import Counter

import pytest
import torch

from specedge_kernels.gpu import linear as gpu
from specedge_kernels.gpu import quantized_linear as quantized
from specedge_kernels.gpu import sum_chunks
from specedge_kernels.quantized import FORMS
from tests.gpu.compiled import SHARED_BYTES, main_loop, waits
from tests.gpu.launches import Launch, launches_of, resources

ARCHS = ("sm_80", "sm_90", "sm_100")
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def dense_launch(
    monkeypatch, rows, arch="sm_90", outputs=5120, inputs=5120, stored=BF16, tile=None
):
    """With the tile that is chosen, or a given one."""
    monkeypatch.setattr(gpu, "architecture", lambda device: arch)
    monkeypatch.setattr(gpu, "converts_e4m3", lambda device: arch != "sm_80")
    monkeypatch.setattr(gpu, "n_multiprocessors", lambda device: 132)
    x, weight = (torch.empty(n, inputs, dtype=BF16) for n in (rows, outputs))
    bias = torch.empty(outputs, dtype=BF16)
    scales = torch.empty(-(-outputs // 128), -(-inputs // 128)) if stored == E4M3 else None
    weight = weight.to(stored)
    tile = tile or gpu.choose_tile(x, weight)
    (launch,) = launches_of(gpu, lambda: gpu.launch(x, weight, bias, scales, tile), monkeypatch)
    return launch


def only(launches: list[Launch]) -> Launch:
    return next(launch for launch in launches if launch.kernel.__name__ != "sum_chunks_kernel")


STORED = {1: E4M3, 2: BF16}
PRODUCTS = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}


@pytest.mark.parametrize("size", STORED, ids=lambda size: f"{8 * size}bit")
@pytest.mark.parametrize("arch", ARCHS)
def test_every_tile_fits_and_computes_a_row_with_the_same_instructions(
    arch, size, monkeypatch, tmp_path
):
    names = set()
    for tile in gpu.TILES[arch][size]:
        compiled = dense_launch(monkeypatch, 16, arch, stored=STORED[size], tile=tile).compile(arch)
        assert resources(compiled, tmp_path)["STACK"] == 0
        assert compiled.metadata.shared <= SHARED_BYTES[arch]
        # Weights and activations of the next steps are on their way while one is multiplied.
        assert max(waits(compiled)) >= 2 * (tile.stages - 2) > 0
        assert not any("LDL" in line for line in main_loop(compiled, tmp_path))
        names.add(tuple(sorted(set(products_of(compiled, arch)))))
        if arch == "sm_90":
            # Each has 64 outputs and 16 inputs, all rows of the tile, and four warps.
            blocks = tile.outputs // 64 * (tile.inputs // 16) // (tile.warps // 4)
            assert len(products_of(compiled, arch)) == blocks
    assert len(names) == 1
    assert re.search("bf16|kind::f16", " ".join(*names))


def products_of(compiled, arch):
    """The instructions that multiply, those of sm_90 with their size; in order."""
    return re.findall(re.escape(PRODUCTS[arch]) + r"\.\S*(?:bf16|f16)\S*", compiled.asm["ptx"])


def test_tiles_of_an_entry_have_the_same_rows_and_inputs():
    for entries in gpu.TILES.values():
        for tiles in entries.values():
            assert len({(tile.rows, tile.inputs) for tile in tiles}) == 1
            assert len({tile.outputs for tile in tiles}) == len(tiles)


def test_float32_fits_too(monkeypatch, tmp_path):
    x = torch.empty(3, 1000)
    launches = launches_of(gpu, lambda: gpu.linear(x, x, 3), monkeypatch)
    assert resources(only(launches).compile("sm_80"), tmp_path)["STACK"] == 0


@pytest.mark.parametrize("stored", [BF16, E4M3], ids=str)
def test_one_compiled_kernel_of_a_tile_serves_any_number_of_rows(stored, monkeypatch):
    tile = gpu.TILES["sm_90"][stored.itemsize][0]
    made = [
        dense_launch(monkeypatch, n, stored=stored, tile=tile) for n in (1, 2, 16, 17, 129, 512)
    ]
    assert all(la.specialisation() == made[0].specialisation() for la in made)
    assert all(la.options == made[0].options for la in made)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_sum_of_chunks_moves_sixteen_bytes_at_a_time(arch, monkeypatch, tmp_path):
    _, chunks = quantized_launches(monkeypatch, 16, 2, outputs=2048)
    compiled = chunks.compile(arch)
    assert resources(compiled, tmp_path)["STACK"] == 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"]


@pytest.mark.parametrize(
    ("rows", "outputs", "chosen"),
    [
        (1, 5120, 64),
        (16, 34816, 64),
        (64, 34816, 128),  # else the rows would be read as often as the weights
        (512, 34816, 256),
        (512, 5120, 256),
        (512, 2048, 128),  # 32 tiles of 256 would leave 100 multiprocessors idle
    ],
)
def test_the_tile_is_wide_where_rows_are_many_and_multiprocessors_are_busy(
    rows, outputs, chosen, monkeypatch
):
    launch = dense_launch(monkeypatch, rows, outputs=outputs)
    assert launch.constant("BLOCK_M") == chosen


def quantized_launches(monkeypatch, rows, kind, outputs=5120, inputs=5120):
    monkeypatch.setattr(sum_chunks, "n_multiprocessors", lambda device: 132)
    x = torch.empty(rows, inputs, dtype=BF16)
    packed = torch.empty(FORMS[kind].packed_bytes(outputs, inputs), dtype=torch.uint8)
    call = (x, packed, [kind], [outputs], False, torch.empty(outputs, dtype=BF16))
    return launches_of(
        quantized, lambda: quantized.quantized_linear(*call), monkeypatch, sum_chunks
    )


# A scale a block, with a minimum, with two scales a block, numbers of eight bits.
FEW = [("sm_90", kind) for kind in (2, 3, 14, 256)]


@pytest.mark.parametrize(
    ("arch", "kind"), [*FEW, ("sm_80", 2), ("sm_80", 256), ("sm_100", 2), ("sm_100", 256)]
)
def test_packed_weights_become_numbers_on_their_way_to_one_instruction(
    arch, kind, monkeypatch, tmp_path
):
    launch = only(quantized_launches(monkeypatch, 16, kind))
    compiled = launch.compile(arch)
    loop = main_loop(compiled, tmp_path)
    assert resources(compiled, tmp_path)["STACK"] == 0
    # Nothing is waited for that was asked for in the same turn.
    assert not any(re.search(r"\b(LDG|LDL|STL)\b", line) for line in loop)
    loads = 2 * 4 + 1 if kind == 256 else 3 * 4
    assert max(waits(compiled)) >= loads * (launch.arguments["TILE"].stages - 2)
    ptx = compiled.asm["ptx"]
    assert set(re.findall(r"\S*mma\S*\.bf16\S*", ptx)) == {
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    }
    # Programs enough for a multiprocessor's share of the loads: an A100's has 164 KiB, of which
    # each takes one KiB more than it asks for.
    assert (compiled.metadata.shared + 1024) * quantized.PROGRAMS <= 164 * 1024


def test_two_compiled_kernels_serve_any_number_of_rows_of_packed_weights(monkeypatch):
    for kind, numbers in ((2, (1, 2, 16)), (2, (17, 33, 64, 256)), (12, (1, 16, 17, 256))):
        made = [only(quantized_launches(monkeypatch, n, kind)) for n in numbers]
        assert all(launch.specialisation() == made[0].specialisation() for launch in made)
        assert all(launch.options == made[0].options for launch in made)


# A scale a block, two, and one for four.
@pytest.mark.parametrize("kind", [2, 14, 256])
def test_tiles_of_few_and_of_many_rows_compute_a_row_alike(kind, monkeypatch, tmp_path):
    """The same instructions of the matrix and of its sums, twice as many for twice the rows."""
    made = []
    for rows in (16, 64):
        compiled = only(quantized_launches(monkeypatch, rows, kind)).compile("sm_90")
        assert resources(compiled, tmp_path)["STACK"] == 0
        names = re.findall(r"\b(?:mma\.sync|fma|add|sub)\.\S*f32\S*", compiled.asm["ptx"])
        made.append(Counter(names))
    few, many = made
    assert {name: 2 * n for name, n in few.items()} == many
    assert set(few) == {
        *("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "fma.rn.f32", "add.f32")
    }


# Plain codes, codes of five and six bits, and of both tables.
@pytest.mark.parametrize("kind", [2, 6, 14, 20, 39])
@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_the_assembly_makes_every_code_into_its_number(kind, dtype):
    """Runs it, one instruction after the other, on all bytes in all places of a word."""
    form, above = FORMS[kind], (0x9A3C55E7, 0x1B6D42F0)
    text, least = quantized.assembly(form, dtype), 128 if dtype == BF16 else 1024
    for byte in range(256):
        word = [byte, 255 - byte, byte ^ 0x5A, byte * 7 % 256]
        shift = byte % 4 * (form.bits - 4)
        given = {"$4": from_bytes(word), "$5": above[0], "$6": above[1], "$7": shift * 0x01010101}
        got = run_ptx(text, given | {"%lanemask_lt": 0x7FFFFFFF})
        halves = [got[f"${i}"] >> 16 * j & 0xFFFF for i in range(4) for j in (0, 1)]
        numbers = torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(dtype)
        codes = [b & 15 for b in word] + [b >> 4 for b in word]
        if form.bits > 4:
            more = upper(form, above, shift)
            codes = [code | bits << 4 for code, bits in zip(codes, more, strict=True)]
        want = [form.table[c] for c in codes] if form.table else [least + c for c in codes]
        assert numbers.tolist() == want


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_the_assembly_makes_every_float8_into_its_number(dtype):
    text = quantized.assembly(FORMS[256], dtype)
    for byte in range(0x7F):
        word = [byte, byte | 0x80, 0x7E - byte, byte * 7 % 0x7F]
        got = run_ptx(text, {"$2": from_bytes(word)})
        halves = [got[f"${i}"] >> 16 * j & 0xFFFF for i in range(2) for j in (0, 1)]
        numbers = torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(dtype)
        want = torch.tensor(word, dtype=torch.uint8).view(E4M3)
        assert torch.equal(numbers.double(), want.double())
        assert torch.equal(numbers.signbit(), want.float().signbit())


def upper(form, above, shift):
    """Bits above the fourth, of the four low codes and the four high ones: csrc/quant_form.h."""
    low, high = (list(word.to_bytes(4, "little")) for word in above)
    if form.bits == 5:
        return [b >> shift & 1 for b in low] + [b >> shift + 4 & 1 for b in low]
    return [b >> shift & 3 for b in low + high]


def from_bytes(values):
    return int.from_bytes(bytes(values), "little")


def run_ptx(text, registers):
    """The registers after `text`, of instructions whose lop3 is a & b | c."""

    def value(name):
        return registers[name] if name in registers else int(name, 0)

    for line in text.strip("{} ").split(";")[1:-1]:
        name, rest = line.split(None, 1)
        to, *arguments = (part.strip() for part in rest.split(","))
        a, b, *more = (*map(value, arguments), 0)
        if name == "prmt.b32":
            eight = a.to_bytes(4, "little") + b.to_bytes(4, "little")
            assert not more[0] & 0x8888, "copies a sign"
            registers[to] = from_bytes(eight[more[0] >> 4 * i & 7] for i in range(4))
        elif name == "shf.r.wrap.b32":
            registers[to] = (b << 32 | a) >> (more[0] & 31) & 0xFFFFFFFF
        elif name == "lop3.b32":
            assert more[1] == 0xF0 & 0xCC | 0xAA
            registers[to] = a & b | more[0]
        elif name.startswith("fma.rn."):
            kind = torch.bfloat16 if name.endswith("bf16x2") else torch.float16
            halves = torch.tensor([a, b, more[0]]).to(torch.int64).int().view(kind).view(3, 2)
            registers[to] = int((halves[0] * halves[1] + halves[2]).view(torch.int32)) & 0xFFFFFFFF
        elif name.startswith("sh"):
            registers[to] = (a >> b if name == "shr.u32" else a << b) & 0xFFFFFFFF
        else:
            registers[to] = {"and.b32": a & b, "xor.b32": a ^ b, "mov.u32": a}[name]
    return registers


@pytest.mark.parametrize(("kind", "most"), [(2, 5), (39, 6), (14, 9), (256, 5)])
def test_unpacking_takes_few_instructions(kind, most, monkeypatch, tmp_path):
    launch = only(quantized_launches(monkeypatch, 16, kind))
    loop = main_loop(launch.compile("sm_90"), tmp_path)
    tile = launch.arguments["TILE"]
    lane_weights = tile.outputs * 32 * tile.blocks / (32 * quantized.WARPS)
    assert len(loop) / lane_weights < most
