"""What the compiler makes of grouped products: they fit, and loads are in flight."""

import re

import pytest
import torch

from specedge_kernels.gpu import grouped_linear as gpu
from tests.gpu.compiled import SHARED_BYTES, main_loop, waits
from tests.gpu.launches import launches_of, resources

ARCHS = ("sm_80", "sm_90", "sm_100")
BF16 = torch.bfloat16


def launches(monkeypatch, rows=16, per_row=8, inputs=2048, dtype=BF16, biased=False):
    """128 experts, as Qwen3-30B-A3B has them but for their width."""
    x, weight = torch.empty(rows, inputs, dtype=dtype), torch.empty(128, 256, inputs, dtype=dtype)
    groups = torch.empty(rows, per_row, dtype=torch.int32)
    call = (x, weight, 256, groups, torch.empty(128, 256) if biased else None)
    return launches_of(gpu, lambda: gpu.grouped_linear(*call), monkeypatch)


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


def test_one_compiled_kernel_serves_any_number_of_rows(monkeypatch):
    made = [launches(monkeypatch, rows) for rows in (1, 2, 16, 33, 512)]
    kernels = [[(la.kernel, la.specialisation(), la.options) for la in each] for each in made]
    assert all(each == kernels[0] for each in kernels)
