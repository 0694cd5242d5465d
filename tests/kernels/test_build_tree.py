import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import SHAPES, int32, offsets_of, parents_of


@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_and_depths_equal_the_reference(shape, words):
    generator = torch.Generator().manual_seed(words)
    sizes = [0, 1, 2, 31, 64 * words, 0, 17]
    parents = int32([p for n in sizes for p in parents_of(shape, n, generator)])
    offsets = offsets_of(sizes)
    want = reference.build_tree(parents, offsets, words)
    got = kernels.build_tree(parents, offsets, words)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_a_mask_is_the_set_of_nodes_met_on_the_way_up():
    generator = torch.Generator().manual_seed(3)
    parents = parents_of("random", 150, generator)
    ancestors, depth = kernels.build_tree(int32(parents), offsets_of([150]), 4)
    for node in range(150):
        walk, at = set(), node
        while at >= 0:
            walk.add(at)
            at = parents[at]
        mask = sum((int(word) % 2**64) << (64 * i) for i, word in enumerate(ancestors[node]))
        assert {j for j in range(256) if mask >> j & 1} == walk
        assert depth[node] == len(walk) - 1


def test_chains_may_be_longer_than_their_masks():
    ancestors, depth = kernels.build_tree(int32(range(-1, 199)), offsets_of([200]), 1)
    assert torch.equal(depth, torch.arange(200, dtype=torch.int32))
    assert (ancestors[63:] == -1).all()


def test_no_requests():
    ancestors, depth = kernels.build_tree(int32([]), offsets_of([]), 2)
    assert ancestors.shape == (0, 2)
    assert depth.shape == (0,)


@pytest.mark.parametrize(
    ("parents", "offsets", "message"),
    [
        ([-1, 1], [0, 2], "request 0: expected the parent of node 1 to be -1 or an earlier node"),
        ([-1, 5], [0, 2], "parent of node 1"),
        ([-2], [0, 1], "got -2"),
        ([-1, -1, 1], [0, 1, 3], "request 1: expected the parent of node 1"),
        ([-1, 0], [1, 2], "expected offsets to start at 0, got 1"),
        ([-1, 0], [0, 2, 1], "expected offsets not to decrease, got 2 then 1 at request 1"),
        ([-1, 0], [0, 1], "expected the last offset to be the number of rows 2, got 1"),
    ],
)
def test_wrong_values_are_named(parents, offsets, message):
    with pytest.raises(ValueError, match=message):
        kernels.build_tree(int32(parents), int32(offsets), 1)


def test_wrong_metadata_is_named():
    with pytest.raises(
        ValueError, match=r"parents: expected a contiguous int32 .* got torch.int64"
    ):
        kernels.build_tree(torch.tensor([-1]), offsets_of([1]), 1)
    with pytest.raises(ValueError, match="words: expected 1 or more, got 0"):
        kernels.build_tree(int32([-1]), offsets_of([1]), 0)
