import math

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import int32, offsets_of
from tests.kernels.edits import make_edit


def edited(edit):
    arguments = edit.arguments()
    kernels.edit_logits(**arguments)
    return arguments["logits"]


def by_hand(edit):
    """Every row from its whole text, token by token, in Python floats."""
    logits = edit.logits.double()
    bounds, texts = edit.offsets.tolist(), edit.text_offsets.tolist()
    biases = edit.bias_offsets.tolist()
    for b in range(len(bounds) - 1):
        numbers = (edit.repetition, edit.frequency, edit.presence)
        repetition, frequency, presence = (column[b].item() for column in numbers)
        for row in range(bounds[b], bounds[b + 1]):
            prompt, output = [], []
            for i in range(texts[b], texts[b + 1]):
                prompt.append(edit.text_tokens[i].item())
                output += [edit.text_tokens[i].item()] * edit.text_counts[i].item()
            for node in range(1, bounds[b + 1] - bounds[b]):
                if edit.ancestors[row, node // 64].item() >> node % 64 & 1:
                    output.append(edit.tokens[bounds[b] + node].item())
            for i in range(biases[b], biases[b + 1]):
                logits[row, edit.bias_tokens[i]] += edit.bias_values[i].item()
            for token in set(prompt + output):
                x = logits[row, token].item()
                x = x / repetition if x > 0 else x * repetition
                logits[row, token] = (
                    x - frequency * output.count(token) - presence * (token in output)
                )
    return logits


@pytest.mark.parametrize("vocabulary", [1, 7, 40, 1000])
@pytest.mark.parametrize("padding", [0, 5])
def test_equals_the_reference_bit_by_bit_and_plain_counting(vocabulary, padding):
    edit = make_edit([1, 9, 0, 40, 64], vocabulary, vocabulary, padding=padding)
    got, want = edited(edit), edit.arguments()
    reference.edit_logits(**want)
    assert torch.equal(got, want["logits"])
    assert torch.allclose(got.double(), by_hand(edit), rtol=1e-5, atol=1e-5)


def test_a_path_across_the_words_of_its_mask_equals_the_reference():
    edit = make_edit([200, 130], 50, 4, words=4)
    want = edit.arguments()
    reference.edit_logits(**want)
    assert torch.equal(edited(edit), want["logits"])


def test_a_request_has_the_same_bits_alone_and_in_a_batch():
    edit = make_edit([3, 17, 1, 30], 60, 2)
    together, bounds = edited(edit), edit.offsets.tolist()
    for b in range(4):
        assert torch.equal(edited(edit.alone(b)), together[bounds[b] : bounds[b + 1]])


def test_threads_change_nothing():
    edit = make_edit([40, 40], 2000, 3)
    want = edited(edit)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(edited(edit), want)
    finally:
        torch.set_num_threads(before)


def test_neutral_numbers_change_no_bit():
    edit = make_edit([5, 9], 30, 5)
    arguments = edit.arguments()
    arguments["logits"][0, :4] = torch.tensor([-0.0, 0.0, -math.inf, 1e-45])
    arguments |= {"repetition": torch.ones(2), "frequency": torch.zeros(2)}
    arguments |= {"presence": torch.zeros(2), "bias_offsets": int32([0, 0, 0])}
    before = arguments["logits"].clone()
    kernels.edit_logits(**arguments)
    assert torch.equal(arguments["logits"].view(torch.int32), before.view(torch.int32))


def test_only_tokens_that_are_named_are_touched_and_none_may_be():
    edit = make_edit([4], 30, 6)
    named = {*edit.text_tokens.tolist(), *edit.bias_tokens.tolist(), *edit.tokens[1:].tolist()}
    others = [token for token in range(30) if token not in named]
    assert torch.equal(edited(edit)[:, others], edit.logits[:, others])
    nothing = make_edit([], 30, 6)
    assert edited(nothing).shape == (0, 30)


def test_a_tree_of_one_node_is_plain_decoding():
    """Its root is in the text already, so the node's own token is not counted again."""
    token = torch.tensor([2])
    logits = torch.tensor([[4.0, -4.0, 8.0, 1.0]])
    one = torch.ones(1, 1, dtype=torch.int64)
    text = (offsets_of([3]), torch.tensor([0, 1, 2]), int32([0, 2, 1]))
    bias = (offsets_of([1]), torch.tensor([3]), torch.tensor([-100.0]))
    numbers = torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([0.25])
    kernels.edit_logits(logits, token, one, offsets_of([1]), *text, *bias, *numbers)
    assert logits.tolist() == [[2.0, -8 - 1 - 0.25, 4 - 0.5 - 0.25, -99.0]]


def test_the_bias_comes_before_the_repetition_penalty():
    edit = make_edit([1], 3, 0)
    arguments = edit.arguments() | {
        "logits": torch.tensor([[1.0, 1.0, 1.0]]),
        "text_offsets": offsets_of([1]),
        "text_tokens": torch.tensor([1]),
        "text_counts": int32([0]),
        "bias_offsets": offsets_of([1]),
        "bias_tokens": torch.tensor([1]),
        "bias_values": torch.tensor([-3.0]),
        "repetition": torch.tensor([2.0]),
    }
    kernels.edit_logits(**arguments)
    assert arguments["logits"].tolist() == [[1.0, -4.0, 1.0]]
