import pytest
import torch

import specedge_kernels as kernels
from tests.kernels.growth import NOBODY, Shape, empty_state, play


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "shape",
    [
        Shape((12,), beams=3, width=4, rounds=4),
        Shape((1, 7, 40), beams=6, width=6, rounds=3),
        Shape((9, 9), beams=8, width=2, rounds=5, values=2),  # ties, and beams without nodes
        Shape((30,), beams=5, width=3, rounds=4, values=1),  # nothing but ties
        Shape((0, 3), beams=2, width=3, rounds=2),
        Shape((200,), beams=33, width=5, rounds=3),  # three mask words
        Shape((5, 64), beams=1, width=1, rounds=70),
    ],
)
def test_grows_as_the_host_tree_does(shape, seed):
    play(kernels.grow_tree, shape, seed)


def test_scores_are_summed_as_on_the_host_so_that_ties_are_the_same():
    """In float32 the two children would tie, and the first would win."""
    state = empty_state(1, 8)
    root = torch.tensor([[-1]], dtype=torch.int32)
    budget = torch.tensor([8], dtype=torch.int32)
    logprobs = torch.tensor([[[-10.0, -10.5]]])
    kernels.grow_tree(*state, root, torch.tensor([[[1, 2]]]), logprobs, budget, 0, 2, 1)
    tiny = torch.tensor([[[-1.5e-7], [-0.5]], [[-1e-7], [-0.5]]])
    two = [torch.cat((array, array)) for array in state]
    expanded = torch.tensor([[0, 1], [0, 1]], dtype=torch.int32)
    kernels.grow_tree(
        *(*two, expanded, torch.zeros(2, 2, 1, dtype=torch.int64), tiny),
        *(torch.cat((budget, budget)), 2, 1, 1),
    )
    assert two[2][0, 2] < two[2][1, 2] < -10


def test_an_empty_batch_and_wrong_arguments():
    none = torch.zeros(0, 3, dtype=torch.int32)
    offer = torch.zeros(0, 3, 2, dtype=torch.int64), torch.zeros(0, 3, 2)
    results = kernels.grow_tree(*empty_state(0, 9), none, *offer, none[:, 0], 0, 4, 1)
    assert [tuple(t.shape) for t in results] == [(0, 4), (0,), (0, 1), (0,)]

    state, budget = empty_state(1, 4), torch.ones(1, dtype=torch.int32)
    expanded = torch.tensor([[-1, NOBODY]], dtype=torch.int32)
    offer = torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match=r"words: expected 65 bits, got 64"):
        kernels.grow_tree(*state, expanded, *offer, budget, 61, 4, 1)
    with pytest.raises(ValueError, match="beams: expected 1 or more"):
        kernels.grow_tree(*state, expanded, *offer, budget, 0, 0, 1)
    with pytest.raises(ValueError, match=r"scores: expected a contiguous float64"):
        kernels.grow_tree(
            *state[:2], state[2].float(), *state[3:], expanded, *offer, budget, 0, 2, 1
        )
    state[-1] += 1
    with pytest.raises(ValueError, match="a tree of 1 nodes may get 4 more; expected room, got 4"):
        kernels.grow_tree(*state, expanded, *offer, budget, 0, 2, 1)
    assert (state[0] == 77).all()
