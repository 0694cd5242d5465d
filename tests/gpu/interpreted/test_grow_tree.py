import pytest
import torch

from specedge_kernels.gpu.grow_tree import grow_tree
from tests.kernels.growth import Shape, empty_state, play


@pytest.mark.parametrize(
    ("shape", "seed"),
    [
        (Shape((12,), beams=3, width=4, rounds=4), 0),
        (Shape((1, 7, 40), beams=6, width=6, rounds=3), 1),
        (Shape((9, 9), beams=8, width=2, rounds=5, values=2), 2),
        (Shape((30,), beams=5, width=3, rounds=4, values=1), 3),
        (Shape((0, 3), beams=2, width=3, rounds=2), 4),
        (Shape((200,), beams=33, width=5, rounds=3), 5),
        (Shape((5, 64), beams=1, width=1, rounds=20), 6),
    ],
)
def test_grows_as_the_host_tree_does(shape, seed, device):
    play(grow_tree, shape, seed, device)


def test_an_empty_batch(device):
    none = torch.zeros(0, 3, dtype=torch.int32, device=device)
    ids = torch.zeros(0, 3, 2, dtype=torch.int64, device=device)
    results = grow_tree(*empty_state(0, 9, device), none, ids, ids.float(), none[:, 0], 0, 4, 1)
    assert [tuple(t.shape) for t in results] == [(0, 4), (0,), (0, 1), (0,)]
