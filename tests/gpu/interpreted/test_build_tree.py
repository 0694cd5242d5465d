import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.build_tree import BLOCK_NODES, build_tree
from tests.kernels.cases import SHAPES, int32, offsets_of, parents_of


def check(trees, words, device):
    parents = int32([parent for tree in trees for parent in tree])
    offsets = offsets_of([len(tree) for tree in trees])
    want = reference.build_tree(parents, offsets, words)
    got = build_tree(parents.to(device), offsets.to(device), words)
    for result, expected in zip(got, want, strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("words", [1, 3, 4])
def test_masks_and_depths_equal_the_reference(words, device):
    generator = torch.Generator().manual_seed(words)
    sizes = [0, 1, 2, 31, 64 * words, 0, 17]
    for shape in SHAPES:
        check([parents_of(shape, n, generator) for n in sizes], words, device)


def test_chains_may_be_longer_than_their_masks_and_than_a_block(device):
    edges = [BLOCK_NODES - 1, BLOCK_NODES, BLOCK_NODES + 1, 3 * BLOCK_NODES + 5]
    check([list(range(-1, n - 1)) for n in edges], 1, device)


def test_a_tree_may_grow_from_a_long_chain_and_have_many_roots(device):
    chain = list(range(-1, 149))
    branches = [149, 149, 150, 151, 140, 154, -1, 156, 0, 158]
    check([chain + branches, [-1, -1, -1, 2, 1], [-1] * 5], 4, device)
    check([chain + branches], 2, device)


def test_parents_that_come_too_late_do_not_hang(device):
    parents = int32([0, 1, 3, 2, 5, 9, -7])
    masks, depth = build_tree(parents.to(device), offsets_of([7]).to(device), 1)
    assert masks.shape == (7, 1)
    assert ((depth >= 0) & (depth < 7)).all()


def test_no_requests(device):
    masks, depth = build_tree(int32([]).to(device), offsets_of([]).to(device), 2)
    assert masks.shape == (0, 2)
    assert depth.shape == (0,)
