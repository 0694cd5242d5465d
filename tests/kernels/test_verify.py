import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import SHAPES, int32, offsets_of, parents_of


def random_trees(sizes, shape, vocabulary, generator):
    """Few distinct tokens, so that walks go deep; siblings may repeat a token."""
    parents = int32([p for n in sizes for p in parents_of(shape, n, generator)])
    offsets = offsets_of(sizes)
    words = max(1, -(-max(sizes, default=1) // 64))
    ancestors, _ = reference.build_tree(parents, offsets, words)
    tokens = torch.randint(vocabulary, (len(parents),), generator=generator)
    target = torch.randint(vocabulary, (len(parents),), generator=generator)
    return tokens, ancestors, offsets, target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [[1], [5, 0, 64, 33, 1], [65, 130, 256]])
def test_walks_equal_the_reference(shape, sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    for vocabulary in (1, 2, 3):
        case = random_trees(sizes, shape, vocabulary, generator)
        for got, want in zip(kernels.verify(*case, 256), reference.verify(*case, 256), strict=True):
            assert torch.equal(got, want)
            assert got.dtype == want.dtype


def test_the_path_is_what_following_the_target_gives():
    generator = torch.Generator().manual_seed(7)
    parents = parents_of("random", 60, generator)
    ancestors, _ = kernels.build_tree(int32(parents), offsets_of([60]), 1)
    tokens = torch.arange(60)  # siblings are distinct
    for _ in range(50):
        target = torch.randint(60, (60,), generator=generator)
        for node in range(0, 60, 3):  # make many walks possible
            children = [c for c in range(60) if parents[c] == node]
            target[node] = children[-1] if children else 99
        walk = [0]
        while True:
            matches = [c for c in range(60) if parents[c] == walk[-1] and c == target[walk[-1]]]
            if not matches:
                break
            walk += matches
        path, accepted, bonus = kernels.verify(tokens, ancestors, offsets_of([60]), target, 60)
        assert path[0, : len(walk)].tolist() == walk
        assert (path[0, len(walk) :] == -1).all()
        assert accepted[0] == len(walk)
        assert bonus[0] == target[walk[-1]]


def test_empty_batch_and_empty_tree():
    path, accepted, bonus = kernels.verify(
        torch.tensor([], dtype=torch.int64),
        torch.zeros(0, 1, dtype=torch.int64),
        int32([0, 0]),
        torch.tensor([], dtype=torch.int64),
        3,
    )
    assert path.tolist() == [[-1, -1, -1]]
    assert accepted.tolist() == [0]
    assert bonus.tolist() == [-1]
    none = kernels.verify(torch.arange(0), torch.zeros(0, 1).long(), int32([0]), torch.arange(0), 3)
    assert [tuple(t.shape) for t in none] == [(0, 3), (0,), (0,)]


def test_wrong_values_are_named():
    chain, _ = kernels.build_tree(int32(range(-1, 69)), offsets_of([70]), 2)
    tokens = torch.zeros(70, dtype=torch.int64)
    with pytest.raises(ValueError, match="accepted path of at most 69 nodes, got 70"):
        kernels.verify(tokens, chain, offsets_of([70]), tokens, 69)
    with pytest.raises(ValueError, match="at most 64 nodes for masks of 1 words, got 70"):
        kernels.verify(tokens, chain[:, :1].contiguous(), offsets_of([70]), tokens, 70)
    masks = torch.tensor([[1], [1]])
    with pytest.raises(ValueError, match="request 0: expected the mask of node 1 to hold the node"):
        kernels.verify(tokens[:2], masks, offsets_of([2]), tokens[:2], 2)
    with pytest.raises(ValueError, match="target: expected a contiguous int64 tensor of shape"):
        kernels.verify(tokens, chain, offsets_of([70]), tokens[:3], 70)
