import re

import pytest
import torch
import triton

from specedge_kernels.gpu.merge_splits import MERGED_HEADS, merge_splits_kernel
from specedge_kernels.gpu.tiles import TILES, Tile, choose_tile, tiles_for
from specedge_kernels.gpu.tree_attention import tree_attention_kernel
from tests.gpu.compiled import SHARED_BYTES, cross_compile, main_loop, stack_bytes, waits

TABLES = {
    "page_table": "*i32",
    "prefix_lens": "*i32",
    "n_nodes": "*i32",
    "offsets": "*i32",
    "ancestors": "*i64",
    "depth": "*i32",
    "partial_out": "*fp32",
    "partial_lse": "*fp32",
    "batch": "i32",
    "pages_per_request": "i32",
    "scale": "fp32",
    "softcap": "fp32",
    "window": "i32",
}
STRIDES = dict.fromkeys(("k_page", "k_token", "k_head", "v_page", "v_token", "v_head"), "i32*16")


def compile_attention(arch: str, tile: Tile, dtype: str, dim: int, **constants):
    tensors = dict.fromkeys(("q", "k_cache", "v_cache", "out"), f"*{dtype}")
    shape = {
        "HK": 8,
        "GROUP": 5,
        "D": dim,
        "S": 16,
        "W": 1,
        "BATCH": 16,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_KEYS": tile.keys,
        "BLOCK_D": triton.next_power_of_2(dim),
        "SOFTCAP": False,
        "WINDOW": False,
        "UPCAST": False,
    }
    return cross_compile(
        tree_attention_kernel,
        arch,
        {**tensors, **TABLES, **STRIDES},
        {**shape, **constants},
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def spills(code: list[str]) -> list[str]:
    return [line for line in code if re.search(r"\b(LDL|STL)\b", line)]


# float32 takes the same instructions on every card.
ENTRIES = [
    pytest.param(arch, size, dim, tile, id=f"{arch}-{8 * size}bit-{dim}-{tile.rows}")
    for arch, entries in TILES.items()
    for (size, dim), tiles in entries.items()
    for tile in tiles
    if size == 2 or arch == "sm_80"
]


def test_keys_of_a_tile_follow_neither_the_batch_nor_exceed_a_mask_word():
    for entries in TILES.values():
        for tiles in entries.values():
            assert len({tile.keys for tile in tiles}) == 1
            assert tiles[0].keys <= 64
            assert [tile.rows for tile in tiles] == sorted(tile.rows for tile in tiles)


@pytest.mark.parametrize(
    ("nodes", "rows"), [(0, 64), (1, 64), (12, 64), (13, 128), (25, 128), (64, 128)]
)
def test_the_rows_of_a_tile_hold_the_mean_tree(nodes, rows):
    q = torch.empty(16 * nodes, 40, 128, dtype=torch.bfloat16)
    k_cache = torch.empty(1, 16, 8, 128, dtype=torch.bfloat16)
    assert choose_tile(q, k_cache, batch=16).rows == rows
    assert choose_tile(q[:0], k_cache, batch=0).rows == 64


def test_a_head_dimension_beyond_the_table_is_named():
    with pytest.raises(ValueError, match="head dimension of 256 or less, got 257"):
        tiles_for("sm_90", 2, 257)


@pytest.mark.parametrize(("arch", "size", "dim", "tile"), ENTRIES)
def test_every_tile_fits_and_keeps_loads_in_flight(arch, size, dim, tile, tmp_path):
    compiled = compile_attention(arch, tile, "bf16" if size == 2 else "fp32", dim)
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    # Keys and values of the next tiles are on their way while one is multiplied.
    assert max(waits(compiled)) >= 2 * (tile.stages - 2) > 0
    # Registers put aside around the loop cost little; float32 at 256 is there to be right.
    loop = main_loop(compiled, tmp_path)
    assert any("MMA" in line for line in loop)
    assert not spills(loop) or (size, dim) == (4, 256)
    if arch == "sm_90" and size == 2:
        assert "wgmma.mma_async" in compiled.asm["ptx"]
        assert "mma.sync" not in compiled.asm["ptx"]
    if arch == "sm_100" and size == 2:
        assert "tcgen05.mma" in compiled.asm["ptx"]


@pytest.mark.parametrize(
    "options",
    [
        {"S": 1, "D": 80},
        {"S": 64, "GROUP": 8, "WINDOW": True},
        {"W": 4, "BATCH": 256, "WINDOW": True, "SOFTCAP": True},
    ],
    ids=str,
)
def test_no_option_disturbs_the_main_loop(options, tmp_path):
    tile = tiles_for("sm_90", 2, 128)[0]
    compiled = compile_attention("sm_90", tile, "bf16", 128, **options)
    assert max(waits(compiled)) == 2 * (tile.stages - 2)
    assert not spills(main_loop(compiled, tmp_path))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_the_merge_does_not_spill(arch, tmp_path):
    types = {
        name: TABLES[name]
        for name in ("partial_out", "partial_lse", "prefix_lens", "offsets", "batch", "window")
    }
    constants = {
        "HQ": 40,
        "GROUP": 5,
        "D": 128,
        "BATCH": 16,
        "BLOCK_ROWS": 64,
        "BLOCK_KEYS": 64,
        "BLOCK_D": 128,
        "BLOCK_HEADS": MERGED_HEADS,
        "WINDOW": False,
    }
    types["out"] = "*bf16"
    compiled = cross_compile(merge_splits_kernel, arch, types, constants)
    assert stack_bytes(compiled, tmp_path) == 0
