"""What the compiler makes of grouped products: they fit, and loads are in flight."""

import re

import pytest
import torch

from specedge_kernels.gpu import grouped_linear as gpu
from specedge_kernels.gpu import grouped_quantized_linear as quantized
from specedge_kernels.gpu import sort_pairs
from specedge_kernels.quantized import FORMS
from tests.gpu.compiled import SHARED_BYTES, main_loop, waits
from tests.gpu.launches import launches_of, resources

ARCHS = ("sm_80", "sm_90", "sm_100")
BF16 = torch.bfloat16


def launches(monkeypatch, rows=16, per_row=8, inputs=2048, dtype=BF16, biased=False):
    """128 experts, as Qwen3-30B-A3B has them but for their width."""
    x, weight = torch.empty(rows, inputs, dtype=dtype), torch.empty(128, 256, inputs, dtype=dtype)
    groups = torch.empty(rows, per_row, dtype=torch.int32)
    call = (x, weight, 256, groups, torch.empty(128, 256) if biased else None)
    return launches_of(gpu, lambda: gpu.grouped_linear(*call), monkeypatch, sort_pairs)


def quantized_launches(monkeypatch, kind, rows=16):
    x, groups = torch.empty(rows, 2048, dtype=BF16), torch.empty(rows, 8, dtype=torch.int32)
    packed = torch.empty(128, FORMS[kind].packed_bytes(256, 2048), dtype=torch.uint8)
    call = (x, packed, [kind], [256], groups, torch.empty(128, 256), False)
    return launches_of(
        quantized, lambda: quantized.grouped_quantized_linear(*call), monkeypatch, sort_pairs
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_the_tile_fits_and_keeps_loads_in_flight(arch, monkeypatch, tmp_path):
    sort, product = (launch.compile(arch) for launch in launches(monkeypatch))
    assert resources(sort, tmp_path)["STACK"] == 0
    used = resources(product, tmp_path)
    assert used["STACK"] == 0
    assert used["REG"] * product.metadata.num_warps * 32 * 2 <= 65536
    assert product.metadata.shared <= SHARED_BYTES[arch]
    # Weights and rows of the next steps are on their way while one is multiplied.
    assert max(waits(product)) >= 2 * (gpu.TILES[2].stages - 2)
    mma = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma_async", "sm_100": r"tcgen05\.mma"}[arch]
    assert re.search(mma + r"\S*(bf16|kind::f16)", product.asm["ptx"])
    assert not any("LDL" in line for line in main_loop(product, tmp_path))


@pytest.mark.parametrize(
    "case", [{"inputs": 2880, "biased": True}, {"inputs": 100}, {"dtype": torch.float32}], ids=str
)
def test_other_shapes_and_types_fit_too(case, monkeypatch, tmp_path):
    for launch in launches(monkeypatch, **case):
        compiled = launch.compile("sm_90")
        assert resources(compiled, tmp_path)["STACK"] == 0
        assert compiled.metadata.shared <= SHARED_BYTES["sm_90"]


# A scale a block, a minimum as well, floats of four and of eight bits.
@pytest.mark.parametrize(
    ("arch", "kind"), [("sm_90", 12), ("sm_80", 2), ("sm_100", 39), ("sm_90", 256)]
)
def test_packed_sets_are_multiplied_as_one_packed_weight_is(arch, kind, monkeypatch, tmp_path):
    _, product = quantized_launches(monkeypatch, kind)
    compiled = product.compile(arch)
    loop = main_loop(compiled, tmp_path)
    assert resources(compiled, tmp_path)["STACK"] == 0
    assert not any(re.search(r"\b(LDG|LDL|STL)\b", line) for line in loop)
    loads = 2 * 4 + 1 if kind == 256 else 3 * 4
    assert max(waits(compiled)) >= loads * (product.arguments["TILE"].stages - 2)
    assert set(re.findall(r"\S*mma\S*\.bf16\S*", compiled.asm["ptx"])) == {
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    }


@pytest.mark.parametrize(
    "made_for",
    [launches, lambda *given: quantized_launches(given[0], 2, given[1])],
    ids=["floats", "packed"],
)
def test_one_compiled_kernel_serves_any_number_of_rows(made_for, monkeypatch):
    made = [made_for(monkeypatch, rows) for rows in (1, 2, 16, 33, 512)]
    kernels = [[(la.kernel, la.specialisation(), la.options) for la in each] for each in made]
    assert all(each == kernels[0] for each in kernels)
