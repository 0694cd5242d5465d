"""GGUF files of all kinds: logits as llama.cpp's, or refused in a sentence that is known here."""

import functools
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from runtime.model import weights
from runtime.model.config import ModelError
from specedge_kernels.quantized import FORMS
from tests.model import gguf_cases, gguf_files, tiny
from tests.model.gguf_cases import WEIGHTS
from tests.model.gguf_files import VOCAB, Case
from tests.model.llama_cpp import LlamaCpp

RUN = {*FORMS, 0, 1, 30}  # and float32, float16, bfloat16
N_TOKENS = 40  # more than the original contexts and windows of the cases
N_CASES, CHUNK = 690, 30

# Relative errors of float32 sums in another order; and where weights are not float32, so that
# llama.cpp rounds what they are multiplied with. A file read in another way gives errors near 1.
EXACT, ROUNDED = 1e-4, 0.2
HALF = 2e-3  # of an embedding that is float16 here


@functools.cache
def llama_cpp() -> LlamaCpp:
    return LlamaCpp()


def compare(seed: int) -> None:
    """Raises AssertionError where llama.cpp and we do not make the same of the case's file."""
    case, options = gguf_cases.case(seed)
    told = f"seed {seed}, {case.architecture}: {', '.join(option.name for option in options)}"
    tokens = np.random.default_rng(seed).integers(0, VOCAB, N_TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = gguf_files.write(case, Path(folder) / "model.gguf")
        ours = our_logits(path, tokens)
        for sentence in (option.refused for option in options if option.refused):
            assert isinstance(ours, str), f"{told}: we load it; expected {sentence!r}"
            assert re.search(sentence, ours), f"{told}: {ours!r}; expected {sentence!r}"
            return
        theirs = llama_cpp().logits(path, tokens)
    assert not isinstance(theirs, str), f"{told}: llama.cpp does not load it: {theirs}"
    assert not isinstance(ours, str), f"{told}: llama.cpp loads it, we do not: {ours}"
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < tolerance(case), f"{told}: logits differ by {error:.2e}"


def our_logits(path: Path, tokens: list[int]) -> np.ndarray | str:
    """The same as LlamaCpp.logits."""
    try:
        engine = tiny.engine_of(weights.load(path, activations="exact"))
    except ModelError as error:
        return str(error)
    return engine.forward([tiny.chain(tokens, 0, engine.kv.allocate(12))]).numpy()


def tolerance(case: Case) -> float:
    """Rows of the embedding are looked up, not multiplied, unless it is the output head too."""
    multiplied = WEIGHTS if "output.weight" in case.tensors else (*WEIGHTS, "token_embd")
    rounded = any(part in name for name in case.kinds for part in multiplied)
    if rounded:
        return ROUNDED
    return EXACT if all(kind in RUN for kind in case.kinds.values()) else HALF


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp, the judge, is missing")
@pytest.mark.parametrize("first", range(0, N_CASES, CHUNK))
def test_files_are_read_as_llama_cpp_reads_them(first):
    for seed in range(first, first + CHUNK):
        compare(seed)
