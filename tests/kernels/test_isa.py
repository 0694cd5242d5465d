"""Every instruction set that this processor runs gives right results, chosen by SPECEDGE_ISA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specedge_kernels import _cpu

HERE = Path(__file__).parent
NAMES = (
    *("linear", "quantized_linear", "rms_norm", "silu_mul", "rope_append_kv", "tree_attention"),
    *("noise", "target_tokens", "draft_topk", "token_logprobs"),
    *("route", "grouped_linear", "weighted_sum", "edges"),
)
# The two that have AVX-512 differ in products of quantised weights and share the code of all else.
SHARING = {"avx512", "avx512vnni"}
NOT_SHARED = ("quantized_linear", "grouped_linear", "edges")
SELECTION = (
    "equal or bits or dimension or pair or large or chain or stored or close or value or finite"
)
PRINT = "from specedge_kernels import _cpu; print(_cpu.isa())"
TEST = f"{PRINT}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"

NORMS = """
import torch, specedge_kernels
generator = torch.Generator().manual_seed(0)
for width in (1, 63, 576, 1001):
    x, weight = torch.randn(4, width, generator=generator), torch.ones(width)
    print(specedge_kernels.rms_norm(x, weight, 1e-5).view(torch.int32).tolist())
"""
# A product of every format that activations are rounded for.
DIGEST = """
import hashlib, torch, specedge_kernels as kernels
from tests.kernels.quantized_cases import GGML, random_stored
digest = hashlib.sha256()
for kind in GGML:
    weight = kernels.pack_quantized(random_stored(kind, 300, 512), kind)
    for rows in (1, 5, 40):
        x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows))
        digest.update(kernels.quantized_linear(x, weight).numpy().tobytes())
print(digest.hexdigest())
"""


def run(isa, *command):
    return subprocess.run(
        [sys.executable, "-c", *command],
        env={**os.environ, "SPECEDGE_ISA": isa},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512vnni"])
def test_kernels_pass_their_tests(isa, request):
    if isa == _cpu.isa():
        pytest.skip(f"{isa} is what the other tests run")
    selection = ("-k", SELECTION, "-m", request.config.option.markexpr)
    names = NOT_SHARED if {isa, _cpu.isa()} == SHARING else NAMES
    files = [str(HERE / f"test_{name}.py") for name in names]
    tests = run(isa, TEST, "-q", "-x", *selection, *files)
    if f"SPECEDGE_ISA={isa} is not an instruction set of this processor" in tests.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert tests.stdout.startswith(isa)
    assert tests.returncode == 0, tests.stdout


def test_norms_have_the_same_bits_on_all_of_them():
    prints = [run(isa, NORMS).stdout for isa in ("generic", "avx2", "avx512")]
    assert prints[0]
    assert all(text in ("", prints[0]) for text in prints)


def test_rounded_products_have_the_same_bits_on_every_set_with_fused_multiply_adds():
    ran = [run(isa, DIGEST) for isa in ("avx2", "avx512", "avx512vnni")]
    digests = {result.stdout for result in ran if not result.returncode}
    assert len(digests) <= 1
    assert all("is not an instruction set" in r.stderr for r in ran if r.returncode)


def test_an_unknown_set_is_refused():
    refused = run("sse9", PRINT)
    assert refused.returncode
    assert "ValueError: SPECEDGE_ISA=sse9 is not an instruction set" in refused.stderr
