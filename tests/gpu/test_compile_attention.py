import re

import pytest
import torch
import triton.language as tl

from specedge_kernels.gpu import tree_attention as gpu
from specedge_kernels.gpu.merge_splits import MERGED_HEADS, merge_splits_kernel
from specedge_kernels.gpu.paged import offset_type, width_of
from specedge_kernels.gpu.tiles import LATENT_TILES, TILES, Tile, choose_tile, tiles_for
from tests.gpu.compiled import SHARED_BYTES, cross_compile, main_loop, stack_bytes, waits
from tests.gpu.launches import launches_of

TABLES = {
    "page_table": "*i32",
    "prefix_lens": "*i32",
    "n_nodes": "*i32",
    "offsets": "*i32",
    "ancestors": "*i64",
    "depth": "*i32",
    "lse": "*fp32",
    "partial_out": "*fp32",
    "partial_lse": "*fp32",
    "batch": "i32",
    "pages_per_request": "i32",
    "scale": "fp32",
    "softcap": "fp32",
    "window": "i32",
    "v_scale": "fp32",
}
MERGED = (
    "lse",
    "partial_out",
    "partial_lse",
    "prefix_lens",
    "n_nodes",
    "offsets",
    "batch",
    "window",
)
STRIDES = dict.fromkeys(("k_page", "k_token", "k_head", "v_page", "v_token", "v_head"), "i32*16")


def compile_attention(
    arch: str,
    tile: Tile,
    dtype: str,
    widths: tuple[int, int],
    cached: str | None = None,
    **constants,
):
    tensors = dict.fromkeys(("q", "out"), f"*{dtype}")
    tensors |= dict.fromkeys(("k_cache", "v_cache"), f"*{cached or dtype}")
    shape = {
        "HK": 8,
        "GROUP": 5,
        "KEY": width_of(widths[0]),
        "VALUE": width_of(widths[1]),
        "SHARED": False,
        "ALIKE": True,
        "k_scales": None,
        "v_scales": None,
        "sinks": None,
        "S": 16,
        "W": 1,
        "OFFSET": tl.int32,
        "BATCH": 16,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_KEYS": tile.keys,
        "SOFTCAP": False,
        "WINDOW": False,
        "INVARIANT": False,
        "LSE": False,
        "NATIVE_E4M3": arch != "sm_80",
        "TOTALS": 8 if arch == "sm_90" else 1,
        "UPCAST": False,
    }
    shape |= constants
    of_heads = {n: shape.pop(n) for n in ("k_scales", "v_scales", "sinks") if shape[n]}
    return cross_compile(
        gpu.tree_attention_kernel,
        arch,
        {**tensors, **TABLES, **STRIDES, **of_heads},
        shape,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.max_registers,
        enable_fp_fusion=not shape["INVARIANT"],
    )


ARCHS = ("sm_80", "sm_90", "sm_100")


def copies(widths: tuple[int, int]) -> int:
    """Of one tile of keys and values: one for each power of two that makes up their widths."""
    return sum(2 if width_of(width).rest else 1 for width in widths if width)


def spills(code: list[str]) -> list[str]:
    return [line for line in code if re.search(r"\b(LDL|STL)\b", line)]


# float32 takes the same instructions on every card.
ENTRIES = [
    pytest.param(
        arch,
        size,
        (keys, values),
        tile,
        False,
        id=f"{arch}-{8 * size}bit-{keys}-{values}-{tile.rows}",
    )
    for arch, entries in TILES.items()
    for (size, keys, values), tiles in entries.items()
    for tile in tiles
    if size == 2 or arch == "sm_80"
]
ENTRIES += [
    pytest.param(arch, 2, (576, 512), tile, True, id=f"{arch}-latent")
    for arch, tiles in LATENT_TILES.items()
    for tile in tiles
]


def test_keys_of_a_tile_follow_neither_the_batch_nor_exceed_a_mask_word():
    for entries in TILES.values():
        for tiles in entries.values():
            assert len({tile.keys for tile in tiles}) == 1
            assert tiles[0].keys <= 64
            assert [tile.rows for tile in tiles] == sorted(tile.rows for tile in tiles)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_only_a_batch_invariant_launch_does_without_contraction(batch_invariant, monkeypatch):
    q, caches = torch.empty(3, 4, 32), torch.empty(2, 1, 16, 2, 32)
    tables = [torch.zeros(shape, dtype=torch.int32) for shape in ((1, 4), 1, 1, 2)]
    tables += [torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)]
    options = {"scale": 1.0, "batch_invariant": batch_invariant}
    (launch,) = launches_of(
        gpu, lambda: gpu.tree_attention(q, *caches, *tables, **options), monkeypatch
    )
    assert launch.arguments["INVARIANT"] == batch_invariant
    assert launch.options.get("enable_fp_fusion", True) != batch_invariant


def test_a_batch_invariant_tile_follows_no_batch():
    k_cache = torch.empty(1, 16, 8, 128, dtype=torch.bfloat16)
    tiles = {
        choose_tile(q, k_cache, k_cache, batch, batch_invariant=True)
        for batch in (1, 3)
        for q in torch.empty(400, 40, 128, dtype=torch.bfloat16).split([1, 12, 64, 323])
    }
    assert len(tiles) == 1


@pytest.mark.parametrize(
    ("nodes", "rows"), [(0, 64), (1, 64), (12, 64), (13, 128), (25, 128), (64, 128)]
)
def test_the_rows_of_a_tile_hold_the_mean_tree(nodes, rows):
    q = torch.empty(16 * nodes, 40, 128, dtype=torch.bfloat16)
    k_cache = torch.empty(1, 16, 8, 128, dtype=torch.bfloat16)
    assert choose_tile(q, k_cache, k_cache, batch=16).rows == rows
    assert choose_tile(q[:0], k_cache, k_cache, batch=0).rows == 64


def test_a_head_dimension_beyond_the_table_is_named():
    for size, keys, values in ((2, 577, 64), (2, 64, 513), (4, 257, 64)):
        with pytest.raises(ValueError, match=f"got {keys} and {values} of {size} bytes"):
            tiles_for("sm_90", size, keys, values)


@pytest.mark.parametrize(
    ("pages", "strides", "wanted"),
    [
        (2, (2**31 - 1 - 15 * 128 - 127, 128), tl.int32),
        (2, (2**31 - 15 * 128 - 127, 128), tl.int64),
        (1, (2**40, 128), tl.int32),
        (1, (16, 2**28), tl.int64),
    ],
)
def test_offsets_have_the_bits_that_a_cache_needs(pages, strides, wanted):
    def cache(pages, strides):
        return torch.empty_strided((pages, 16, 8, 128), (*strides, 2**40, 1), device="meta")

    assert offset_type(cache(pages, strides), cache(1, (16, 128))) == wanted
    assert offset_type(cache(1, (16, 128)), cache(pages, strides)) == wanted


@pytest.mark.every_value
@pytest.mark.parametrize(("arch", "size", "widths", "tile", "latent"), ENTRIES)
def test_every_tile_fits_and_keeps_loads_in_flight(arch, size, widths, tile, latent, tmp_path):
    options = {"SHARED": True, "HK": 1, "GROUP": 16} if latent else {}
    compiled = compile_attention(arch, tile, "bf16" if size == 2 else "fp32", widths, **options)
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    # Keys and values of the next tiles are on their way while one is multiplied.
    # Of values that are a part of the keys there are none of their own.
    in_turn = copies((576, 0)) if latent else copies(widths)
    assert max(waits(compiled)) >= in_turn * (tile.stages - 2) > 0
    # Registers put aside around the loop cost little; float32 at 256 is there to be right. Where a
    # thread holds 128 sums of 512 columns, one in 40 instructions of the loop may be of memory.
    loop = main_loop(compiled, tmp_path)
    assert any("MMA" in line for line in loop)
    allowed = len(loop) // 40 if widths[1] > 256 else 0
    assert len(spills(loop)) <= allowed or (size, widths) == (4, (256, 256))
    # Elsewhere Triton gives copies to shared memory no hint.
    if arch != "sm_80":
        copied = re.findall(r"cp\.async\.c[ag]\S*", compiled.asm["ptx"])
        assert copied
        assert all("L2::cache_hint" in line for line in copied)
        policies = re.findall(r"createpolicy\S*", compiled.asm["ptx"])
        assert set(policies) == {"createpolicy.fractional.L2::evict_first.b64"}
    if arch == "sm_90" and size == 2:
        assert "wgmma.mma_async" in compiled.asm["ptx"]
        assert "mma.sync" not in compiled.asm["ptx"]
    if arch == "sm_100" and size == 2:
        assert "tcgen05.mma" in compiled.asm["ptx"]


@pytest.mark.parametrize(
    "options",
    [
        {"S": 1, "widths": (80, 80), "LSE": True},
        {"S": 64, "GROUP": 8, "WINDOW": True},
        {"OFFSET": tl.int64, "ALIKE": False},
        dict.fromkeys(("k_scales", "v_scales", "sinks"), "*fp32"),
        {"W": 4, "BATCH": 256, "WINDOW": True, "SOFTCAP": True},
    ],
    ids=str,
)
def test_no_option_disturbs_the_main_loop(options, tmp_path):
    tile = tiles_for("sm_90", 2, 128, 128)[0]
    options = {"widths": (128, 128)} | options
    compiled = compile_attention("sm_90", tile, "bf16", **options)
    assert max(waits(compiled)) == copies(options["widths"]) * (tile.stages - 2)
    assert not spills(main_loop(compiled, tmp_path))


@pytest.mark.parametrize("arch", ARCHS)
def test_float8_is_multiplied_as_the_queries_are(arch, tmp_path):
    tile = tiles_for(arch, 2, 128, 128)[-1]
    compiled = compile_attention(arch, tile, "bf16", (128, 128), cached="u8")
    assert max(waits(compiled)) == 2 * (tile.stages - 2)
    assert not spills(main_loop(compiled, tmp_path))
    # Half the bytes in flight, but what is multiplied is bfloat16.
    assert ("e4m3x2" in compiled.asm["ptx"]) == (arch != "sm_80")
    assert "cvt.rn.bf16.f16" not in compiled.asm["ptx"]
    assert re.search(r"mma\S*bf16|tcgen05\.mma\S*kind::f16", compiled.asm["ptx"])


@pytest.mark.parametrize("arch", ARCHS)
def test_every_loop_of_the_invariant_kernel_computes_alike(arch, tmp_path):
    tile = tiles_for(arch, 2, 128, 128)[-1]
    compiled = compile_attention(arch, tile, "bf16", (128, 128), INVARIANT=True, WINDOW=True)
    assert not spills(main_loop(compiled, tmp_path))
    assert max(waits(compiled)) == 2 * (tile.stages - 2)
    # Four loops: cut by the window, whole, around the tree, along a path. Their largest scores and
    # their sums over keys have layouts that all share, and nothing of them is contracted but the
    # products that are written so (log2 writes out its own).
    rows, keys, parts = tile.rows, tile.keys, 8 if arch == "sm_90" else 1
    whole, in_parts = f"{rows}x{keys}", f"{rows}x{keys // parts}x{parts}"
    for given, left in ((whole, f"{rows}"), (in_parts, f"{rows}x{parts}")):
        reduced = rf"tensor<{given}xf32, (#\w+)>\) -> tensor<{left}xf32"
        layouts = re.findall(reduced, compiled.asm["ttgir"])
        assert len(layouts) >= 4
        assert len(set(layouts)) == 1
    written = compiled.asm["ttgir"].count("math.fma") * rows * keys // (32 * tile.warps)
    assert compiled.asm["ptx"].count("fma.rn.f32") == written > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_the_merge_does_not_spill(arch, tmp_path):
    types = {name: TABLES[name] for name in MERGED}
    constants = {
        "HQ": 40,
        "GROUP": 5,
        "DV": 128,
        "sinks": None,
        "BATCH": 16,
        "BLOCK_ROWS": 64,
        "BLOCK_KEYS": 64,
        "BLOCK_DV": 128,
        "BLOCK_HEADS": MERGED_HEADS,
        "WINDOW": False,
        "INVARIANT": True,
        "LSE": True,
    }
    types["out"] = "*bf16"
    compiled = cross_compile(merge_splits_kernel, arch, types, constants)
    assert stack_bytes(compiled, tmp_path) == 0
