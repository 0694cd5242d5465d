"""What the compiler makes of every kernel but attention: it fits, does not spill, moves wide."""

import re
from importlib import import_module
from itertools import product

import pytest
import torch

from tests.gpu.launches import launches_of, resources

VOCABULARY = 151_936


def empty(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype)


def long(*shape):
    return empty(*shape, dtype=torch.int64)


def real(*shape, dtype=torch.float32):
    return empty(*shape, dtype=dtype)


def cache(dtype, layout="NHD"):
    made = real(4, 64, 8, 128, dtype=dtype)
    return made.transpose(1, 2).contiguous().transpose(1, 2) if layout == "HND" else made


def rows_of(*dtypes, n=2):
    return [empty(n, dtype=dtype) for dtype in dtypes]


F32, I32, I64 = torch.float32, torch.int32, torch.int64
DRAWS = (F32, I32, F32, F32, I64, I64)
K = real(3, 8, 128, dtype=torch.bfloat16)
TABLES = (empty(2, 16), empty(2), empty(2, 16), empty(2))
# name -> op, arguments
CASES = {
    **{f"build_tree-{words}": ("build_tree", (empty(80), empty(3), words)) for words in (1, 3, 4)},
    **{
        f"verify-{words}": ("verify", (long(80), long(80, words), empty(3), long(80), 17))
        for words in (1, 3, 4)
    },
    "append_kv": ("append_kv", (K, K, cache(K.dtype), cache(K.dtype, "HND"), long(3))),
    "append_kv-rounding": (
        "append_kv",
        (K.float(), K.float(), cache(K.dtype), cache(K.dtype), long(3)),
    ),
    "compact_kv": ("compact_kv", (real(3, 2, 9, 64, 8, 128, dtype=K.dtype), *TABLES)),
    "compact_kv-float8": ("compact_kv", (empty(3, 2, 9, 64, 8, 64, dtype=torch.int8), *TABLES)),
    "target_tokens": ("target_tokens", (real(2, VOCABULARY), *rows_of(*DRAWS))),
    "target_tokens-odd": ("target_tokens", (real(2, 32_003), *rows_of(*DRAWS))),
    "draft_topk": ("draft_topk", (real(2, 8192), 4, *rows_of(F32, I64, I64))),
    "draft_topk-64": (
        "draft_topk",
        (real(2, VOCABULARY), 64, *rows_of(F32, I64, I64), long(VOCABULARY)),
    ),
}
FIRST_CASES = list({op: name for name, (op, _) in reversed(CASES.items())}.values())
LAUNCHES = {"target_tokens": 4, "draft_topk": 2}


def compile_case(name, arch, monkeypatch):
    op, arguments = CASES[name]
    module = import_module(f"specedge_kernels.gpu.{op}")
    launches = launches_of(module, lambda: getattr(module, op)(*arguments), monkeypatch)
    assert len(launches) == LAUNCHES.get(op, 1)
    return {launch.kernel.__name__: launch.compile(arch) for launch in launches}


@pytest.mark.parametrize(
    ("name", "arch"),
    [*((name, "sm_90") for name in CASES), *product(FIRST_CASES, ("sm_80", "sm_100"))],
)
def test_fits_without_spills(name, arch, monkeypatch, tmp_path):
    for kernel, compiled in compile_case(name, arch, monkeypatch).items():
        used = resources(compiled, tmp_path)
        assert used["STACK"] == 0, kernel
        # At least two programs fit on a multiprocessor side by side.
        assert used["REG"] * compiled.metadata.num_warps * 32 * 2 <= 65536, kernel
        assert compiled.metadata.shared <= 16 * 1024, kernel


def test_keys_and_values_move_sixteen_bytes_at_a_time(monkeypatch):
    append = compile_case("append_kv", "sm_90", monkeypatch)["append_kv_kernel"].asm["ptx"]
    assert len(re.findall(r"ld\.global\.v4\.b32", append)) == 2
    assert len(re.findall(r"st\.global\.v4\.b32", append)) == 2
    compact = compile_case("compact_kv", "sm_90", monkeypatch)["compact_kv_kernel"].asm["ptx"]
    moves = re.findall(r"(ld\.global\.v4|bar\.sync|st\.global)\S*", compact)
    # All loads of a turn are under way before the barrier, all stores follow it.
    n = (len(moves) - 1) // 2
    assert n >= 4
    assert moves == ["ld.global.v4"] * n + ["bar.sync"] + ["st.global"] * n


def test_halves_are_rounded_to_nearest(monkeypatch):
    ptx = compile_case("append_kv-rounding", "sm_90", monkeypatch)["append_kv_kernel"].asm["ptx"]
    casts = set(re.findall(r"cvt\.\w+\.bf16\S*", ptx))
    assert casts
    assert casts <= {"cvt.rn.bf16x2.f32", "cvt.rn.bf16.f32"}


def test_logits_are_read_sixteen_bytes_at_a_time_and_divided_exactly(monkeypatch):
    target = compile_case("target_tokens", "sm_90", monkeypatch)
    for name in ("chunks_kernel", "rows_kernel", "draw_kernel"):
        ptx = target[name].asm["ptx"]
        assert "ld.global.v4.b32" in ptx, name
        assert set(re.findall(r"div\.\S*f32", ptx)) == {"div.rn.f32"}, name


def test_noise_takes_exact_logarithms_and_drafting_rounds_twice(monkeypatch):
    draw = compile_case("target_tokens", "sm_90", monkeypatch)["draw_kernel"]
    part = compile_case("draft_topk", "sm_90", monkeypatch)["part_topk_kernel"]
    for compiled in (draw, part):
        assert "lg2.approx" not in compiled.asm["ptx"]
    assert "enable_fp_fusion=False" in str(part.metadata)
