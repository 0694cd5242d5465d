"""What the compiler makes of products: it fits, loads are in flight, and rows change nothing."""

import re

import pytest
import torch

from specedge_kernels.gpu import linear as gpu
from specedge_kernels.gpu import sum_chunks
from tests.gpu.compiled import SHARED_BYTES, main_loop, waits
from tests.gpu.launches import Launch, launches_of, resources

ARCHS = ("sm_80", "sm_90", "sm_100")
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def dense_launches(monkeypatch, rows, arch="sm_90", outputs=5120, inputs=5120, stored=BF16):
    monkeypatch.setattr(gpu, "architecture", lambda device: arch)
    monkeypatch.setattr(gpu, "converts_e4m3", lambda device: arch != "sm_80")
    monkeypatch.setattr(sum_chunks, "n_multiprocessors", lambda device: 132)
    x, weight = (torch.empty(n, inputs, dtype=BF16) for n in (rows, outputs))
    bias = torch.empty(outputs, dtype=BF16)
    scales = torch.empty(-(-outputs // 128), -(-inputs // 128)) if stored == E4M3 else None
    call = (x, weight.to(stored), outputs, bias, scales)
    return launches_of(gpu, lambda: gpu.linear(*call), monkeypatch, sum_chunks)


def only(launches: list[Launch]) -> Launch:
    return next(launch for launch in launches if launch.kernel.__name__ != "sum_chunks_kernel")


@pytest.mark.every_value
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("stored", [BF16, E4M3], ids=str)
def test_every_tile_fits_and_keeps_loads_in_flight(arch, stored, monkeypatch, tmp_path):
    launch = only(dense_launches(monkeypatch, 16, arch, stored=stored))
    compiled = launch.compile(arch)
    assert resources(compiled, tmp_path)["STACK"] == 0
    assert compiled.metadata.shared <= SHARED_BYTES[arch]
    # Weights and activations of the next steps are on their way while one is multiplied.
    assert max(waits(compiled)) >= 2 * (launch.arguments["STAGES"] - 2) > 0
    ptx = compiled.asm["ptx"]
    mma = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma_async", "sm_100": r"tcgen05\.mma"}[arch]
    assert re.search(mma + r"\S*(bf16|kind::f16)", ptx)
    assert not any("LDL" in line for line in main_loop(compiled, tmp_path))


def test_float32_fits_too(monkeypatch, tmp_path):
    x = torch.empty(3, 1000)
    launches = launches_of(gpu, lambda: gpu.linear(x, x, 3), monkeypatch)
    assert resources(only(launches).compile("sm_80"), tmp_path)["STACK"] == 0


@pytest.mark.parametrize("stored", [BF16, E4M3], ids=str)
def test_one_compiled_kernel_serves_any_number_of_rows(stored, monkeypatch):
    made = [dense_launches(monkeypatch, n, stored=stored) for n in (1, 2, 16, 17, 64, 129, 512)]
    kernels = [[(la.kernel, la.specialisation(), la.options) for la in each] for each in made]
    assert all(each[0] == kernels[0][0] for each in kernels)
    # What adds up chunks is launched as long as tiles are few.
    assert [len(each) for each in kernels] == [2] * 6 + [1]
    assert all(each[1] == kernels[0][1] for each in kernels if len(each) == 2)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_sum_of_chunks_moves_sixteen_bytes_at_a_time(arch, monkeypatch, tmp_path):
    _, chunks = dense_launches(monkeypatch, 16, arch)
    compiled = chunks.compile(arch)
    assert resources(compiled, tmp_path)["STACK"] == 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"]


def test_tiles_follow_types_and_card_alone():
    weight = torch.empty(9, 64, dtype=BF16)
    tiles = {gpu.choose_tile(torch.empty(n, 64, dtype=BF16), weight) for n in (1, 16, 17, 512)}
    assert len(tiles) == 1
