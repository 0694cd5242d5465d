import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.verify import verify
from tests.kernels.cases import SHAPES, int32, offsets_of, parents_of


def random_trees(sizes, shape, vocabulary, generator):
    """Few distinct tokens, so that walks go deep and siblings repeat each other's token."""
    parents = int32([p for n in sizes for p in parents_of(shape, n, generator)])
    offsets = offsets_of(sizes)
    words = max(1, -(-max(sizes, default=1) // 64))
    ancestors, _ = reference.build_tree(parents, offsets, words)
    tokens = torch.randint(vocabulary, (len(parents),), generator=generator)
    target = torch.randint(vocabulary, (len(parents),), generator=generator)
    return tokens, ancestors, offsets, target


def run(case, max_path, device):
    return [result.cpu() for result in verify(*(t.to(device) for t in case), max_path)]


@pytest.mark.every_value
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [[1], [5, 0, 64, 33, 1], [63, 65, 130], [256, 2]])
def test_walks_equal_the_reference(shape, sizes, device):
    generator = torch.Generator().manual_seed(len(sizes))
    for vocabulary in (1, 2, 3):
        case = random_trees(sizes, shape, vocabulary, generator)
        want = reference.verify(*case, 256)
        for result, expected in zip(run(case, 256, device), want, strict=True):
            assert result.dtype == expected.dtype
            assert torch.equal(result, expected)


def test_of_equally_deep_paths_the_lowest_numbered_wins(device):
    parents = [-1, 0, 0, 1, 2, 1]
    ancestors, _ = reference.build_tree(int32(parents), offsets_of([6]), 1)
    same = torch.zeros(6, dtype=torch.int64)
    target = torch.tensor([0, 0, 0, 30, 40, 50])
    path, accepted, bonus = run((same, ancestors, offsets_of([6]), target), 4, device)
    assert path.tolist() == [[0, 1, 3, -1]]
    assert accepted.tolist() == [3]
    assert bonus.tolist() == [30]


@pytest.mark.parametrize("max_path", [0, 1, 3, 69])
def test_a_path_that_is_too_long_is_cut_to_a_shorter_acceptance(max_path, device):
    """What is left is still lossless: the bonus follows the last node that was kept."""
    ancestors, _ = reference.build_tree(int32(range(-1, 69)), offsets_of([70]), 2)
    tokens = torch.arange(70)
    case = (tokens, ancestors, offsets_of([70]), tokens + 1)
    path, accepted, bonus = run(case, max_path, device)
    assert path.tolist() == [list(range(max_path))]
    assert accepted.tolist() == [max_path]
    assert bonus.tolist() == [max_path or -1]


def test_bits_above_a_node_are_ignored(device):
    generator = torch.Generator().manual_seed(5)
    tokens, ancestors, offsets, target = random_trees([40], "random", 2, generator)
    want = reference.verify(tokens, ancestors, offsets, target, 40)
    for node in range(39):
        ancestors[node] |= -1 << (node + 1)
    for result, expected in zip(
        run((tokens, ancestors, offsets, target), 40, device), want, strict=True
    ):
        assert torch.equal(result, expected)


def test_empty_batch_and_empty_tree(device):
    none = torch.arange(0)
    case = (none, none.view(0, 1), int32([0, 0]), none)
    path, accepted, bonus = run(case, 3, device)
    assert path.tolist() == [[-1, -1, -1]]
    assert accepted.tolist() == [0]
    assert bonus.tolist() == [-1]
    results = run((none, none.view(0, 1), int32([0]), none), 3, device)
    assert [tuple(t.shape) for t in results] == [(0, 3), (0,), (0,)]
