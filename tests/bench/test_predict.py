"""Predictions: what is read from a compiled kernel, and the arithmetic that follows."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from bench.predict import __main__ as predict
from bench.predict.cards import CARDS, LATENCY_S, LAUNCH_S, Card
from bench.predict.machine_code import Code, read
from bench.predict.model import Stream, Terms, resident, terms
from specedge_kernels.gpu.sum_chunks import n_multiprocessors
from specedge_kernels.gpu.tiles import architecture
from tests.gpu.compiled import cross_compile

CARD = CARDS["H100"]


@triton.jit
def stream_kernel(keys, out, n, ROWS: tl.constexpr, D: tl.constexpr):
    """Multiplies n tiles of ROWS keys by themselves and adds the results."""
    at = tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :]
    total = tl.zeros([ROWS, ROWS], tl.float32)
    for i in range(n):
        tile = tl.load(keys + i * ROWS * D + at)
        total += tl.dot(tile, tl.trans(tile))
    square = tl.arange(0, ROWS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    tl.store(out + square, total)


@triton.jit
def add_one_kernel(x, BLOCK: tl.constexpr):
    at = x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(at, tl.load(at) + 1)


@pytest.mark.parametrize(("arch", "warp_mma"), [("sm_80", True), ("sm_90", False)])
def test_a_turn_of_a_streaming_loop_is_found(arch: str, warp_mma: bool, tmp_path: Path) -> None:
    types = {"keys": "*bf16", "out": "*fp32", "n": "i32"}
    shape = {"ROWS": 64, "D": 128}
    compiled = cross_compile(stream_kernel, arch, types, shape, num_warps=4, num_stages=3)
    code = read(compiled, tmp_path)
    assert code.loops
    assert code.loads_ahead
    assert code.turn_bytes == 64 * 128 * 2
    assert code.flight_bytes >= code.turn_bytes
    assert code.turn_flops == 2 * 64 * 64 * 128
    assert code.warp_mma == warp_mma
    assert code.products_ahead != warp_mma  # they add to what the next turn adds to
    assert code.spills == code.stack_bytes == 0
    # A thread copies 128 bytes of the tile, in eight instructions of four clocks each.
    assert code.by_unit["data"] >= 8 * 4
    per_warp = {"sm_80": 64 * 64 * 128 // (16 * 8 * 16) // 4, "sm_90": 128 // 16}[arch]
    assert code.by_unit["matrix"] == per_warp


def test_a_kernel_without_a_loop_is_one_turn(tmp_path: Path) -> None:
    code = read(cross_compile(add_one_kernel, "sm_90", {"x": "*fp32"}, {"BLOCK": 1024}), tmp_path)
    assert not code.loops
    assert not code.loads_ahead
    assert code.turn_bytes == 4096
    assert code.turn_flops == 0
    assert code.by_unit["float"] == 8  # of a thread of 128


def made(**changed: object) -> Code:
    """One program on a multiprocessor, 32 KiB a turn, loads ahead."""
    numbers = {
        **{"registers": 255, "stack_bytes": 0, "shared_bytes": 128 << 10, "warps": 8},
        **{"turn_bytes": 32 << 10, "turn_flops": 0, "by_unit": {"float": 80.0}, "spills": 0},
        **{"instructions": 100, "flight_bytes": 32 << 10, "loads_ahead": True, "loops": True},
        **{"warp_mma": False, "products_ahead": False},
    }
    return Code(**(numbers | changed))


def test_what_fits_on_a_multiprocessor() -> None:
    assert resident(made(), CARD) == 1
    assert resident(made(registers=128, shared_bytes=80 << 10), CARD) == 2  # 227 KiB / 81
    assert resident(made(registers=128, shared_bytes=0), CARD) == 2  # 65536 / (128 * 256)
    assert resident(made(registers=32, shared_bytes=0), CARD) == 8  # 64 warps


def test_a_stream_is_bound_by_memory_and_a_wait_by_its_program() -> None:
    n_bytes = 132 * 1000 * (32 << 10)
    stream = Stream(n_bytes, n_bytes, items=132)
    found = terms(made(), stream, CARD, programs=132)
    assert found.bound == "memory"
    assert found.total_s == n_bytes / CARD.bytes_per_s + LATENCY_S + LAUNCH_S
    # 1000 turns, in each of which every of two warps of a scheduler starts 100 instructions.
    assert found.issue == pytest.approx(1000 * 8 * 100 / 4 / CARD.clock_hz)
    assert found.pipe == pytest.approx(1000 * 8 * 80 / 4 / CARD.clock_hz)
    waiting = terms(made(loads_ahead=False), stream, CARD, programs=132)
    assert waiting.alone == pytest.approx(found.alone + 1000 * LATENCY_S)
    slow = terms(made(turn_flops=10**9), stream, CARD, programs=132)
    assert slow.bound == "alone"
    overlapped = terms(made(turn_flops=10**9, products_ahead=True), stream, CARD, programs=132)
    assert overlapped.bound == "matrix"
    assert overlapped.alone == pytest.approx(overlapped.matrix)
    assert slow.matrix == pytest.approx(132 * 1000 * 1e9 / CARD.flops_per_s)


def test_partial_results_go_by_memory_as_far_as_the_l2_cannot_hold_them() -> None:
    def found(partial_bytes: float) -> Terms:
        return terms(made(), Stream(1e6, 1e6, 132, partial_bytes=partial_bytes), CARD, 132)

    without, fits, more = found(0), found(CARD.l2_bytes), found(CARD.l2_bytes + 3e6)
    assert without.memory == fits.memory == pytest.approx(1e6 / CARD.bytes_per_s)
    assert more.memory == pytest.approx(4e6 / CARD.bytes_per_s)
    assert fits.l2 == pytest.approx((1e6 + CARD.l2_bytes) / CARD.l2_bytes_per_s)
    assert without.alone == fits.alone == more.alone


def test_one_item_too_many_costs_another_round() -> None:
    def alone(items: int) -> float:
        through = items * 10 * (32 << 10)
        return terms(made(), Stream(0, through, items), CARD, programs=132).alone

    assert alone(1) == alone(132)
    assert alone(133) == alone(264) == 2 * alone(132)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_launchers_see_the_card(card: Card) -> None:
    device = torch.device("meta")
    with card.pretended():
        assert architecture(device) == card.arch
        assert n_multiprocessors(device) == card.multiprocessors


def test_the_command_predicts_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.predict", "--only", "silu_mul", "--terms"])
    assert predict.main() == 0
    assert capsys.readouterr().out.startswith("predicted for H100, nothing is measured")
    monkeypatch.setattr(sys, "argv", ["bench.predict", "--only", "silu_mul", "--json"])
    assert predict.main() == 0
    first = json.loads(capsys.readouterr().out)["predicted"][0]
    assert first["floor_us"] == pytest.approx(3 * 512 * 17408 * 2 / CARD.bytes_per_s * 1e6)
    assert 0.8 < first["predicted_share_of_floor"] < 1
