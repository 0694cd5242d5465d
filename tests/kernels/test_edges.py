"""Sizes at every edge of what the C++ does at a time: vectors, tiles, panels, blocks, words.

Each instruction set does these for itself, with vectors of other sizes (test_isa.py runs this file
with each), so every remainder is met, not a sample. Where a large result is right, all smaller ones
are parts of it, bit for bit.
"""

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from specedge_kernels.quantized import FORMS
from tests.kernels.cases import int32, make_batch, make_caches, masks_of, parents_of
from tests.kernels.quantized_cases import KINDS, NAMES, dequantized, random_stored

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# Vectors have 4, 8 or 16 numbers, words of masks 32, sums of norms 64.
WIDTHS = range(1, 67)
# Tiles have up to 6 rows, and up to 16 rows convert weights in turn.
ROWS = (*range(1, 20), 95, 96, 97)
INPUTS = (1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257)
OUTPUTS = (*range(1, 18), 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_of_any_width_equal_their_parts(dtype):
    """Of ops that treat every column alike."""
    most = max(WIDTHS)
    gate, up, y = random(3, 4 * 3, most, dtype=dtype)
    weights = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    want = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    whole = kernels.silu_mul(torch.cat((gate, up), 1))
    torch.testing.assert_close(whole.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    summed = reference.weighted_sum(y, weights)
    for width in WIDTHS:
        part = torch.cat((gate[:, :width], up[:, :width]), 1)
        assert torch.equal(kernels.silu_mul(part), whole[:, :width])
        got = kernels.weighted_sum(y[:, :width].contiguous(), weights)
        assert torch.equal(got, summed[:, :width])


@pytest.mark.parametrize("dtype", FLOATS)
def test_norms_of_any_width_are_close_to_float64(dtype):
    for width in (*WIDTHS, *range(127, 131), *range(191, 195)):
        x, weight = random(3, width, dtype=dtype), random(width, seed=1, dtype=dtype)
        mean = x.double().pow(2).mean(-1, keepdim=True)
        want = x.double() / (mean + 1e-6).sqrt() * weight.double()
        got = kernels.rms_norm(x, weight, 1e-6).double()
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_draws_of_any_vocabulary_equal_the_reference(masked):
    """One row of each kind: greedy, sampled, top-k, top-p, min-p."""
    rows = 5
    draws = (
        torch.tensor([0.0, 0.9, 0.9, 0.9, 0.9]),
        int32([0, 0, 3, 0, 0]),
        torch.tensor([1.0, 1.0, 1.0, 0.8, 1.0]),
        torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1]),
        torch.arange(rows),
    )
    for vocabulary in WIDTHS:
        generator = torch.Generator().manual_seed(vocabulary)
        logits = torch.randn(rows, vocabulary, generator=generator) * 3
        position = torch.full((rows,), vocabulary)
        masks = masks_of(rows, vocabulary, 0.5, generator) if masked else ()
        want = reference.target_tokens(logits, *draws, position, *masks)
        assert torch.equal(kernels.target_tokens(logits, *draws, position, *masks), want)


def test_drafts_and_log_probabilities_of_any_vocabulary_equal_the_reference():
    rows = 3
    for vocabulary in WIDTHS:
        logits, n = random(rows, vocabulary, seed=vocabulary) * 3, min(vocabulary, 5)
        draws = (torch.tensor([0.0, 0.7, 1.5]), torch.arange(rows), torch.arange(rows))
        ids = torch.arange(vocabulary).flip(0) * 7
        want_ids, want = reference.draft_topk(logits, n, *draws, ids)
        got_ids, got = kernels.draft_topk(logits, n, *draws, ids)
        assert torch.equal(got_ids, want_ids)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        tokens = torch.arange(rows).clamp(max=vocabulary - 1)
        wanted = reference.token_logprobs(logits, tokens, n)
        for one, other in zip(kernels.token_logprobs(logits, tokens, n), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_of_any_shape_equal_their_parts(dtype):
    for inputs in INPUTS:
        x, weight = random(max(ROWS), inputs), random(max(OUTPUTS), inputs, seed=1, dtype=dtype)
        whole = kernels.linear(x, kernels.pack_linear(weight), max(OUTPUTS))
        want = x.double() @ weight.double().T
        assert (whole - want).abs().max() <= 1e-6 * (
            x.double().abs() @ weight.double().abs().T
        ).max()
        for outputs in OUTPUTS:
            panels = kernels.pack_linear(weight[:outputs])
            for rows in ROWS:
                got = kernels.linear(x[:rows], panels, outputs)
                assert torch.equal(got, whole[:rows, :outputs])


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_quantised_products_of_any_shape_equal_their_parts(kind, exact):
    """Panels have 8 outputs, tiles up to 32; up to 4 rows have sums in registers, a run has 64."""
    group = FORMS[kind].inputs
    for inputs in (group, 2 * group, 3 * group):
        stored, x = random_stored(kind, 66, inputs), random(66, inputs)
        weight = kernels.pack_quantized(stored, kind)
        whole = kernels.quantized_linear(x, weight, exact=exact)
        values = dequantized(stored, kind).double()
        sizes = x.abs().double() @ values.abs().T
        error = (whole - x.double() @ values.T).abs()
        assert (error <= (1e-6 if exact else 0.01) * sizes).all()
        for outputs in (*range(1, 18), 31, 32, 33, 63, 64, 65):
            part = kernels.pack_quantized(stored[:outputs], kind)
            for rows in (1, 2, 3, 4, 5, 8, 63, 64, 65):
                got = kernels.quantized_linear(x[:rows], part, exact=exact)
                assert torch.equal(got, whole[:rows, :outputs])


def test_runs_of_any_length_have_the_bits_of_linear():
    """Runs of 0 .. 97 rows of one set, from every row of the batch on."""
    inputs, outputs, sets = 65, 66, 3
    weight, x = random(sets, outputs, inputs), random(max(ROWS), inputs, seed=1)
    panels = [kernels.pack_linear(one) for one in weight]
    alone = torch.stack([kernels.linear(x, one, outputs) for one in panels])
    for rows in ROWS:
        for first in {0, 1, rows // 2, rows}:
            chosen = torch.full((rows, 1), 2, dtype=torch.int32)
            chosen[first:] = 0
            got = kernels.grouped_linear(x[:rows], torch.stack(panels), outputs, chosen)
            want = alone[chosen[:, 0].long(), torch.arange(rows)]
            assert torch.equal(got, want)


def attended(sizes, prefixes, heads, group, dim, window, cached=torch.float32):
    """How far from float64 one launch is, relatively."""
    generator = torch.Generator().manual_seed(dim)
    batch = make_batch([parents_of("random", n, generator) for n in sizes], prefixes, 16, generator)
    caches = make_caches(batch, heads, dim, cached, generator)
    q = torch.randn(int(batch.offsets[-1]), heads * group, dim, generator=generator)
    options = {"scale": dim**-0.5, "window": window}
    got = kernels.tree_attention(q, *caches, *batch.tables, **options)
    want = reference.tree_attention(q.double(), *caches, *batch.tables, **options)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("cached", [*FLOATS, torch.float8_e4m3fn])
def test_heads_of_any_width_are_close_to_float64(cached):
    for dim in (*range(1, 34), 47, 48, 49, 63, 64, 65, 127, 128, 129):
        assert attended([3, 1], [66, 2], 2, 3, dim, -1, cached) <= 2e-6


def test_trees_and_prefixes_beside_every_block_are_close_to_float64():
    """The softmax has blocks of 64 positions and stretches of 512, words of a mask 64 nodes."""
    for prefix in (0, 1, 62, 63, 64, 65, 66, 127, 128, 129, 447, 448, 511, 512, 513):
        for window in (-1, 1, 64):
            assert attended([1, 2, 63, 64, 65], [prefix] * 5, 1, 1, 5, window) <= 2e-6


def test_any_number_of_heads_is_close_to_float64():
    for group in range(1, 18):
        for nodes in (1, 2, 3, 7, 13):
            assert attended([nodes], [65], 2, group, 8, -1) <= 2e-6
