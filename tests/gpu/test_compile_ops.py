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
    made = empty(4, 64, 8, 128, dtype=dtype)
    return made.transpose(1, 2).contiguous().transpose(1, 2) if layout == "HND" else made


def rows_of(*dtypes, n=2):
    return [empty(n, dtype=dtype) for dtype in dtypes]


def rope_case(query_heads, heads, dim, dtype, norm=True):
    qkv_dtype = F32 if dtype == F32 else torch.bfloat16
    qkv = real(3, query_heads + 2 * heads, dim, dtype=qkv_dtype)
    norms = real(query_heads + heads, dim, dtype=qkv_dtype) if norm else None
    caches = (empty(4, 64, heads, dim, dtype=dtype) for _ in range(2))
    return (qkv, norms, real(512, dim), real(512, dim), long(3), *caches, long(3))


def edit_case(words):
    return (real(90, VOCABULARY), long(90), long(90, words), *lists_of(8))


def lists_of(trees):
    offsets, penalties = empty(trees + 1), [real(trees) for _ in range(3)]
    return (offsets, offsets, long(1000), empty(1000), offsets, long(30), real(30), *penalties)


F32, I32, I64 = torch.float32, torch.int32, torch.int64
E4M3 = torch.float8_e4m3fn
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
    "append_kv-keys": (
        "append_kv",
        (K, K[..., :0], cache(K.dtype), cache(K.dtype)[..., :0], long(3)),
    ),
    "append_kv-float8": ("append_kv", (K, K, cache(E4M3), cache(E4M3, "HND"), long(3))),
    "rope_append_kv": ("rope_append_kv", rope_case(40, 8, 128, K.dtype)),
    "rope_append_kv-no-norm": ("rope_append_kv", rope_case(40, 8, 128, K.dtype, norm=False)),
    "rope_append_kv-float8": ("rope_append_kv", rope_case(40, 8, 128, E4M3)),
    "rope_append_kv-80": ("rope_append_kv", rope_case(32, 4, 80, F32)),
    "rms_norm": ("rms_norm", (real(3, 5120, dtype=K.dtype), real(5120, dtype=K.dtype), 1e-6)),
    "rms_norm-delta": ("rms_norm", (real(3, 5120), real(5120), 1e-6, real(3, 5120))),
    "rms_norm-wide": ("rms_norm", (real(3, 8192, dtype=K.dtype), real(8192, dtype=K.dtype), 1e-6)),
    "silu_mul": ("silu_mul", (real(3, 2 * 17408, dtype=K.dtype),)),
    "compact_kv": ("compact_kv", (real(3, 2, 9, 64, 8, 128, dtype=K.dtype), *TABLES)),
    "compact_kv-float8": ("compact_kv", (empty(3, 2, 9, 64, 8, 64, dtype=torch.int8), *TABLES)),
    "target_tokens": ("target_tokens", (real(2, VOCABULARY), *rows_of(*DRAWS))),
    "target_tokens-odd": ("target_tokens", (real(2, 32_003), *rows_of(*DRAWS))),
    "target_tokens-masked": (
        "target_tokens",
        (real(2, VOCABULARY), *rows_of(*DRAWS), empty(3, VOCABULARY // 32), empty(2)),
    ),
    **{f"edit_logits-{words}": ("edit_logits", edit_case(words)) for words in (1, 4)},
    "token_logprobs": ("token_logprobs", (real(2, VOCABULARY), long(2), 20)),
    "draft_topk": ("draft_topk", (real(2, 8192), 4, *rows_of(F32, I64, I64))),
    "draft_topk-64": (
        "draft_topk",
        (real(2, VOCABULARY), 64, *rows_of(F32, I64, I64), long(VOCABULARY)),
    ),
    "route": ("route", (real(3, 128), 8, "softmax", True, 1.0, None, 1, 1, 2)),
    "route-groups": ("route", (real(3, 256), 8, "sigmoid", True, 2.5, real(256), 8, 4, 2)),
    "weighted_sum": ("weighted_sum", (real(24, 2048, dtype=K.dtype), real(3, 8))),
}
FIRST_CASES = {op: name for name, (op, _) in reversed(CASES.items())}.values()
# On sm_80 there is no instruction that makes a float8.
ELSEWHERE = [*FIRST_CASES, "rope_append_kv-float8", "target_tokens-masked"]
SCALES = {"k_scale": 0.5, "v_scales": real(8)}
OPTIONS = dict.fromkeys(("append_kv-float8", "rope_append_kv-float8"), SCALES)
LAUNCHES = {"target_tokens": 4, "draft_topk": 2, "token_logprobs": 2}


def compile_case(name, arch, monkeypatch):
    op, arguments = CASES[name]
    module = import_module(f"specedge_kernels.gpu.{op}")
    options = OPTIONS.get(name, {})
    launches = launches_of(module, lambda: getattr(module, op)(*arguments, **options), monkeypatch)
    assert len(launches) == LAUNCHES.get(op, 1)
    return {launch.kernel.__name__: launch.compile(arch) for launch in launches}


@pytest.mark.every_value
@pytest.mark.parametrize(
    ("name", "arch"),
    [*((name, "sm_90") for name in CASES), *product(ELSEWHERE, ("sm_80", "sm_100"))],
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


@pytest.mark.parametrize("op", ["rope_append_kv", "rms_norm", "silu_mul"])
def test_rows_move_sixteen_bytes_at_a_time(op, monkeypatch):
    ptx = compile_case(op, "sm_90", monkeypatch)[f"{op}_kernel"].asm["ptx"]
    wide = re.findall(r"(?:ld|st)\.global\.v4\.b32", ptx)
    narrow = re.findall(r"(?:ld|st)\.global\.(?:b16|b32|v2\.b32)", ptx)
    assert len(wide) >= 3
    assert not narrow


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


def test_noise_is_rounded_one_operation_at_a_time(monkeypatch):
    """So that it has the bits of the specification: nothing fused, approximate or flushed to 0."""
    target = compile_case("target_tokens", "sm_90", monkeypatch)
    part = compile_case("draft_topk", "sm_90", monkeypatch)["part_topk_kernel"]
    for compiled in (target["rows_kernel"], target["draw_kernel"], part):
        steps = set(re.findall(r"\b(?:fma|mad|mul|add|sub|lg2|div)\.\S*f32", compiled.asm["ptx"]))
        assert steps >= {"mul.rn.f32", "add.rn.f32"}
        assert steps <= {"mul.rn.f32", "add.rn.f32", "sub.rn.f32", "div.rn.f32"}


def tables_of(batch, pages, path):
    return (empty(batch, pages), empty(batch), empty(batch, path), empty(batch))


KV = real(3, 2, 9, 64, 8, 128, dtype=K.dtype)
# op -> its arguments in steps of several trees, nodes of the largest and pages of the longest
STEPS = {
    "verify": [
        (long(n), long(n, words), empty(trees + 1), long(n), most)
        for n, words, trees, most in ((1, 1, 1, 1), (90, 1, 3, 16), (64, 1, 2, 33), (128, 1, 2, 64))
    ],
    "compact_kv": [
        (KV, *tables_of(*sizes)) for sizes in ((1, 1, 1), (3, 16, 16), (4, 17, 5), (64, 256, 33))
    ],
    "edit_logits": [
        (real(n, VOCABULARY), long(n), long(n, 1), *lists_of(trees))
        for n, trees in ((90, 9), (30, 10), (72, 16))
    ],
    "target_tokens": [(real(n, VOCABULARY), *rows_of(*DRAWS, n=n)) for n in (1, 2, 16, 33, 512)],
    "token_logprobs": [(real(n, VOCABULARY), long(n), tops) for n, tops in ((2, 15), (16, 16))],
}


@pytest.mark.parametrize("op", STEPS)
def test_a_step_compiles_nothing_that_another_has_not(op, monkeypatch):
    """Else somebody would wait for the compiler, and all who share the step with him."""
    module = import_module(f"specedge_kernels.gpu.{op}")
    launches = [
        launches_of(module, lambda given=given: getattr(module, op)(*given), monkeypatch)
        for given in STEPS[op]
    ]
    made = [[(one.kernel, one.specialisation(), one.options) for one in each] for each in launches]
    assert all(each == made[0] for each in made)
