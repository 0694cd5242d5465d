import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.edit_logits import edit_logits
from tests.kernels.edits import make_edit


def edited(edit, device):
    arguments = edit.arguments(device)
    edit_logits(**arguments)
    return arguments["logits"].cpu()


@pytest.mark.parametrize(
    ("sizes", "words", "vocabulary"),
    [([1, 9, 0, 5], 1, 7), ([12], 1, 300), ([3, 70], 2, 40), ([2, 1, 1], 3, 1)],
)
def test_equals_the_reference_bit_by_bit(sizes, words, vocabulary, device):
    edit = make_edit(sizes, vocabulary, vocabulary, words=words, padding=3)
    want = edit.arguments()
    reference.edit_logits(**want)
    assert torch.equal(edited(edit, device), want["logits"])


def test_a_request_has_the_same_bits_alone_and_in_a_batch(device):
    edit = make_edit([3, 6, 1], 60, 2)
    together, bounds = edited(edit, device), edit.offsets.tolist()
    for b in range(3):
        assert torch.equal(edited(edit.alone(b), device), together[bounds[b] : bounds[b + 1]])


def test_rows_beyond_the_last_request_are_left_alone(device):
    """As a step of a fixed size has them."""
    edit = make_edit([3, 6], 40, 2)
    arguments = edit.arguments(device)
    arguments["offsets"][2] = 5
    edit_logits(**arguments)
    assert torch.equal(arguments["logits"].cpu()[5:], edit.logits[5:])


def test_no_rows(device):
    assert edited(make_edit([], 5, 0), device).shape == (0, 5)
