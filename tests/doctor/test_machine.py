"""Findings that do not depend on the machine that the tests run on."""

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from runtime.config import EdgeConfig
from runtime.doctor import fit, machine
from runtime.doctor.finding import State, exit_status, fault, ok, warning
from runtime.doctor.prediction import Drafted, Prediction
from runtime.doctor.server import speed
from runtime.model.open import open_engine
from tests.model.families.small import FAMILIES, save


def test_the_exit_status_is_that_of_the_worst() -> None:
    good, bad, worse = ok("a", "b"), warning("a", "b", "c"), fault("a", "b", "c")
    assert exit_status([]) == exit_status([good]) == 0
    assert exit_status([good, bad, good]) == 1
    assert exit_status([bad, worse, good]) == 2


def test_what_is_wrong_always_says_how_to_mend_it() -> None:
    with pytest.raises(AssertionError):
        warning("a", "b", "")


def test_a_gpu_needs_an_implementation_of_its_ops() -> None:
    devices = {"linear": ["meta", "cpu"], "verify": ["meta", "cpu", "cuda"]}
    assert machine.kernels(devices, None).state is State.OK
    assert machine.kernels(devices, ["verify"]).state is State.OK
    told = machine.kernels(devices | {"verify": ["cpu"]}, ["verify"])
    assert told.state is State.FAULT
    assert "the GPU lacks verify" in told.sentence
    assert "specedge[gpu]" in told.mend


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.devices([], None).state is State.OK
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "built for CUDA" in machine.devices([], None).mend
    assert "driver" in machine.devices([], "12.8").mend


def test_every_gpu_is_told_of() -> None:
    two = [machine.Gpu("A", 2 * 2**30, 8 * 2**30), machine.Gpu("B", 5 * 2**30, 6 * 2**30)]
    told = machine.devices(two, "12.8")
    sentence = "CUDA 12.8: cuda:0 A, 2.0 of 8.0 GiB free; cuda:1 B, 5.0 of 6.0 GiB free"
    assert (told.state, told.sentence) == (State.OK, sentence)
    assert [gpu["free_bytes"] for gpu in told.figures["gpus"]] == [2 * 2**30, 5 * 2**30]
    told = machine.devices([*two, machine.Gpu("C", fault="out of memory")], "12.8")
    assert told.state is State.WARNING
    assert told.sentence == f"{sentence}; cuda:2 C, out of memory"


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert machine.processors().state is State.WARNING
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.processors().state is State.OK


def test_a_forced_instruction_set_is_told() -> None:
    assert machine.instructions("avx2", "").state is State.OK
    assert "SPECEDGE_ISA" in machine.instructions("avx2", "avx2").mend


@pytest.mark.parametrize("weights", ["stored", "bfloat16", "q8_0"])
def test_the_memory_of_a_model_is_what_it_takes(tiny_pair: tuple[Path, Path], weights: str) -> None:
    need = fit.needed(fit.described(str(tiny_pair[0])), weights, "same", on_gpu=False)
    engine = open_engine(str(tiny_pair[0]), weights, "cpu", lambda model: 64, 16)
    assert need.token_bytes * 64 == engine.kv.pools[0].nbytes
    with safe_open(tiny_pair[0] / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    n_weights = sum(math.prod(shape) for shape in shapes)
    bytes_each = {"stored": 4, "bfloat16": 2, "q8_0": 1 + 2 / 32}[weights]
    assert need.weights_bytes == pytest.approx(n_weights * bytes_each, rel=0.05)


@pytest.mark.parametrize("name", ["gemma-2", "gpt-oss", "deepseek-v3"])
def test_so_is_that_of_a_model_that_transformers_modules_run(tmp_path: Path, name: str) -> None:
    """Whose layers differ, or whose values are narrower than its keys."""
    save(FAMILIES[name], tmp_path)
    model = fit.described(str(tmp_path))
    need = fit.needed(model, "stored", "same", on_gpu=False)
    engine = open_engine(str(tmp_path), "stored", "cpu", lambda model: 64, 16)
    assert need.token_bytes * 64 == sum(pool.nbytes for pool in engine.kv.pools)
    assert model.max_context == engine.model.max_context
    assert fit.look("draft", str(tmp_path), EdgeConfig()).state is State.OK


def test_a_gpu_computes_in_the_type_of_the_embedding(tiny_pair: tuple[Path, Path]) -> None:
    model = fit.described(str(tiny_pair[0]))
    as_stored, halves = (
        fit.needed(model, weights, "same", on_gpu=True) for weights in ("stored", "bfloat16")
    )
    assert as_stored.weights_bytes == 2 * halves.weights_bytes
    assert as_stored.token_bytes == 2 * halves.token_bytes
    quarter = fit.needed(model, "stored", "float8_e4m3", on_gpu=True)
    assert as_stored.token_bytes == 4 * quarter.token_bytes


def test_what_is_quantised_stays_so_on_a_gpu() -> None:
    class Sizes:
        def running_bytes(self, name: str) -> int:
            return {"norm": 20, "embedding": 2000, "weight": 1100}[name]

        n_bytes = running_bytes

    shapes = {"norm": (10,), "embedding": (100, 10), "weight": (100, 10)}
    model = fit.Model(shapes, Sizes(), (), 10, "embedding")
    assert fit.needed(model, "stored", "same", on_gpu=True).weights_bytes == 20 + 2000 + 1100


def test_a_model_that_does_not_fit() -> None:
    need = fit.Need(weights_bytes=600, token_bytes=10, tokens=50)
    assert fit.told("model", "m", need, 1100).state is State.OK
    assert fit.told("model", "m", need, None).state is State.OK
    told = fit.told("model", "m", need, 1099)
    assert told.state is State.FAULT
    assert "--kv-tokens" in told.mend
    assert fit.tokens_that_fit(need, 1600) == 85
    assert fit.tokens_that_fit(need, 0) == 1


def test_the_draft_s_cache_is_the_edge_s(tiny_pair: tuple[Path, Path]) -> None:
    told = fit.look("draft", str(tiny_pair[1]), EdgeConfig(device="cpu"))
    assert "for 1024 tokens" in told.sentence, "the model's own context, shorter than the edge's"
    assert "--draft" in fit.look("draft", "nowhere", EdgeConfig()).mend
    assert "--device" in fit.look("draft", str(tiny_pair[1]), EdgeConfig(device="tpu")).mend
    told = fit.look("model", str(tiny_pair[1]), EdgeConfig(device="cpu"))
    assert f"for {fit.CPU_KV_TOKENS} tokens" in told.sentence


def test_a_prediction_is_the_arithmetic_that_the_page_says() -> None:
    drafted = Drafted(tokens=3.0, nodes=20, draft_s=0.02, verify_s=0.05, queue_s=0.01)
    near = Prediction(rtt_s=0.02, plain_per_s=20.0, drafted=drafted, plain_share=0.0)
    assert near.drafted_per_s == pytest.approx(3 / 0.1)
    assert drafted.longest_rtt_s(20.0) == pytest.approx(3 / 20 - 0.08)
    at_the_limit = Prediction(drafted.longest_rtt_s(20.0), 20.0, drafted, 0.0)
    assert at_the_limit.drafted_per_s == pytest.approx(20.0)
    # of ten rounds five are the server's own: 5 tokens at 20 a second, 15 in 5 rounds of 0.1 s
    mixed = Prediction(0.02, 20.0, drafted, plain_share=0.5)
    assert mixed.drafted_per_s == pytest.approx(20 / (5 / 20 + 5 * 0.1))
    assert speed(near).state is State.OK
    far = speed(Prediction(0.2, 20.0, drafted, 0.0))
    assert far.state is State.WARNING
    assert "within a round trip of 70 ms" in far.mend
    poor = Drafted(tokens=1.1, nodes=20, draft_s=0.02, verify_s=0.05, queue_s=0.01)
    assert "right more often" in speed(Prediction(0.0, 20.0, poor, 0.0)).mend
    assert "hardly any token" in speed(None).sentence
    assert "--max-budget 0" in speed(Prediction(0.0, 20.0, None)).mend
