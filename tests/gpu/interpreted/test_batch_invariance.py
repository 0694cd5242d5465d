"""With INVARIANT, a row's bits follow from its own path: checked to the last bit.

Under the interpreter this shows that every row meets the same numbers in the same columns and in
the same order. That a card's matrix instructions treat all rows of a tile alike, and add products
of zero without a trace, is for the same tests on a card to show.
"""

import dataclasses

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from specedge_kernels import reference
from specedge_kernels.gpu import tree_attention as gpu
from specedge_kernels.gpu.plan import INVARIANT_SPLIT_TOKENS
from specedge_kernels.gpu.tiles import Tile
from tests.kernels.cases import linearised, make_batch, make_caches, offsets_of, parents_of

TILE = Tile(rows=32, keys=32, warps=4, stages=2, programs=1)
WIDE = Tile(rows=64, keys=64, warps=4, stages=2, programs=1)
SPLIT = INVARIANT_SPLIT_TOKENS.value
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def _rows_are_alike(device, monkeypatch):
    """What numpy's product of matrices gives for a row depends on the row's place in its matrix."""
    if device == "cpu":
        monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_in_order)


def dot_in_order(_, a, b, total, *__):
    product = np.einsum("mk,kn->mn", a.data, b.data)
    return TensorHandle(product + total.data, total.dtype.scalar)


def attend(device, q, caches, batch, tile=TILE, **scoring):
    tensors = [tensor.to(device) for tensor in (q, *caches, *batch.tables)]
    scoring = gpu.Scoring(q.shape[-1] ** -0.5, **scoring)
    out, lse = gpu.launch(*tensors, scoring, tile, with_lse=True, batch_invariant=True)
    return out.cpu(), lse.cpu()


def case(parents, prefixes, seed, heads=1, group=3, dim=32, dtype=torch.float32, **sizes):
    generator = torch.Generator().manual_seed(seed)
    parents = [p if isinstance(p, list) else parents_of(*p, generator) for p in parents]
    batch = make_batch(parents, prefixes, 16, generator, **sizes)
    caches = make_caches(batch, heads, dim, dtype, generator)
    q = torch.randn(int(batch.offsets[-1]), heads * group, dim, generator=generator)
    return q, caches, batch, generator


def assert_rows_have_the_bits_of_decoding(device, work, nodes, tile=TILE, **scoring):
    """`nodes`: (request, node) pairs."""
    q, caches, batch, generator = work
    together = attend(device, q, caches, batch, tile, **scoring)
    for b, node in nodes:
        row = int(batch.offsets[b + 1] - batch.n_nodes[b]) + node
        alone, moved = linearised(batch, caches, b, node, generator, 32)
        decoded = attend(device, q[row : row + 1], moved, alone, tile, **scoring)
        for got, want in zip(together, decoded, strict=True):
            assert torch.equal(got[row], want[0]), (b, node)


@pytest.mark.every_value
@pytest.mark.parametrize("shape", ["chain", "star", "random"])
@pytest.mark.parametrize("options", [{}, {"window": 9, "softcap": 5.0}], ids=str)
def test_equals_float64(device, shape, options):
    parents = [(shape, n) for n in (1, 17, 70)]
    q, caches, batch, _ = case(parents, [5, 60, 33], 1, group=2, cached=[0, 4, 64])
    out, lse = attend(device, q, caches, batch, **options)
    want = reference.tree_attention(
        q.double(), *caches, *batch.tables, scale=32**-0.5, return_lse=True, **options
    )
    assert (out - want[0]).norm() <= 2e-6 * want[0].norm()
    torch.testing.assert_close(lse, want[1], rtol=2e-6, atol=2e-6)


@pytest.mark.every_value
@pytest.mark.parametrize("shape", ["chain", "star", "random"])
@pytest.mark.parametrize(
    ("dtype", "scoring"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"softcap": 3.0, "window": 40}),
        (FP8, {"window": 3, "sinks": torch.linspace(-2, 2, 5)}),
    ],
    ids=str,
)
def test_a_tree_row_has_the_bits_of_plain_decoding(device, shape, dtype, scoring):
    work = case([(shape, 24), (shape, 7)], [50, 0], 2, group=5, dtype=dtype)
    nodes = [(0, 0), (0, 23), (1, 6)]
    assert_rows_have_the_bits_of_decoding(device, work, nodes, **scoring)


def test_a_path_across_the_words_of_its_mask(device):
    # Siblings first, so that no depth equals its node after node 0.
    work = case([[-1, -1, *range(1, 149)]], [20], 3, group=1, words=4, cached=[147])
    assert_rows_have_the_bits_of_decoding(device, work, [(0, 147), (0, 149)], WIDE)


@pytest.mark.parametrize(
    "scoring",
    [{}, {"window": SPLIT + 2}, {"sinks": torch.ones(1)}, {"window": 4, "sinks": torch.ones(1)}],
    ids=str,
)
def test_a_split_inside_the_tree(device, scoring):
    work = case([[-1, -1, *range(1, 15)]], [SPLIT - 9], 4, group=1)
    assert_rows_have_the_bits_of_decoding(device, work, [(0, 9), (0, 10), (0, 15)], WIDE, **scoring)


def test_a_prompt_has_the_same_bits_in_chunks_of_any_size(device):
    q, caches, whole, _ = case([("chain", 90)], [0], 5, group=2)
    want = attend(device, q, caches, whole)[0]
    for first, end in [(0, 40), (40, 90), (64, 90)]:
        chunk = dataclasses.replace(
            whole,
            prefix_lens=whole.prefix_lens + first,
            n_nodes=whole.n_nodes * 0 + end - first,
            offsets=offsets_of([end - first]),
            ancestors=whole.ancestors[: end - first],
            depth=whole.depth[: end - first],
        )
        got = attend(device, q[first:end], caches, chunk)[0]
        assert torch.equal(got, want[first:end])
