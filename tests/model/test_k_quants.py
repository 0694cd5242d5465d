"""Writing Q4_K, Q5_K and Q6_K: what gguf reads in them is as near as llama.cpp's own come."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from runtime.model import k_quants

WRITERS = {Kind.Q4_K: k_quants.q4_k, Kind.Q5_K: k_quants.q5_k, Kind.Q6_K: k_quants.q6_k}
OF_LLAMA_CPP = {Kind.Q4_K: 1.05, Kind.Q5_K: 1.05, Kind.Q6_K: 1.25}
OF_Q4_0 = {Kind.Q4_K: 0.75, Kind.Q5_K: 0.2, Kind.Q6_K: 0.06}
every_format = pytest.mark.parametrize("kind", WRITERS, ids=lambda kind: kind.name)


def weights_like(how):
    random = np.random.default_rng(3)
    normal = random.normal(0, 0.05, (64, 1024))
    values = {
        "normal": normal,
        "heavy tails": random.standard_t(4, normal.shape) * 0.05,
        "positive": random.uniform(0.1, 1, normal.shape),
        "negative": random.uniform(-1, -0.1, normal.shape),
        "uneven blocks": normal * np.repeat(random.uniform(0.2, 3, (64, 32)), 32, 1) + 0.02,
        "tiny": normal * 1e-4,  # their scales are float16's least numbers
    }
    return values[how].astype(np.float32)


ALL = ("normal", "heavy tails", "positive", "negative", "uneven blocks", "tiny")


def error(values, rows, kind):
    return ((dequantize(rows, kind) - values).astype(np.float64) ** 2).mean()


@every_format
@pytest.mark.parametrize("how", ALL[:-1])
def test_the_error_is_below_that_of_q4_0(kind, how):
    values = weights_like(how)
    simple = error(values, quantize(values, Kind.Q4_0), Kind.Q4_0)
    assert error(values, WRITERS[kind](values), kind) < OF_Q4_0[kind] * simple


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp, the judge, is missing")
@every_format
@pytest.mark.parametrize("how", ALL)
def test_the_error_is_that_of_llama_cpp(kind, how):
    from bench.peers.files import quantized

    values = weights_like(how)
    theirs = error(values, quantized(values, kind), kind)
    assert error(values, WRITERS[kind](values), kind) < OF_LLAMA_CPP[kind] * theirs


@every_format
def test_each_weight_is_within_its_blocks_step(kind):
    """Wherever it stands in the block, which tells bits in the wrong place."""
    values = np.random.default_rng(4).uniform(-1, 1, (40, 512)).astype(np.float32)
    largest = {Kind.Q4_K: 15, Kind.Q5_K: 31, Kind.Q6_K: 62}[kind]
    off = abs(dequantize(WRITERS[kind](values), kind) - values)
    assert off.max(0).min() > 0  # no weight is special
    assert off.max() < 1.3 * 2 / largest


@every_format
@pytest.mark.parametrize("value", [0.0, 0.37, -0.37])
def test_equal_weights_stay_so(kind, value):
    values = np.full((2, 256), value, np.float32)
    values[0, 32:64] = 0.0
    got = dequantize(WRITERS[kind](values), kind)
    assert abs(got - values).max() <= abs(value) * 2e-3
    assert (got[1] == got[1, 0]).all()


@every_format
def test_one_weight_that_towers_above_the_others(kind):
    values = np.zeros((8, 256), np.float32)
    values[range(8), range(0, 256, 32)] = 1000 * np.float32([1, -1] * 4)
    got = dequantize(WRITERS[kind](values), kind)
    assert abs(got - values).max() <= 2.0


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K], ids=lambda kind: kind.name)
def test_the_bytes_do_not_depend_on_company(kind):
    """Rows and threads that work beside them change no sum."""
    values, n_threads = weights_like("heavy tails"), torch.get_num_threads()
    together = WRITERS[kind](values)
    for row in (0, 17, 63):
        assert (WRITERS[kind](values[row : row + 1]) == together[row]).all()
    torch.set_num_threads(2 if n_threads == 1 else 1)
    try:
        assert (WRITERS[kind](values) == together).all()
    finally:
        torch.set_num_threads(n_threads)
