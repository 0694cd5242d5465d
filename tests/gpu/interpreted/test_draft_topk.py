import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.draft_topk import PART, draft_topk


def arguments(rows, vocabulary, temperature, generator):
    return (
        torch.randn(rows, vocabulary, generator=generator) * 3,
        torch.as_tensor(temperature).float().expand(rows).contiguous(),
        torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        torch.randint(0, 2**40, (rows,), generator=generator),
    )


def run(logits, k, t, seed, position, ids, device):
    ids = None if ids is None else ids.to(device)
    moved = [x.to(device) for x in (t, seed, position)]
    return [result.cpu() for result in draft_topk(logits.to(device), k, *moved, ids)]


@pytest.mark.every_value
@pytest.mark.parametrize(
    ("vocabulary", "k"), [(1, 1), (17, 17), (1000, 4), (PART, 7), (PART + 1, 2), (PART + 9, 64)]
)
@pytest.mark.parametrize("with_ids", [False, True])
def test_equals_the_reference(vocabulary, k, with_ids, device):
    generator = torch.Generator().manual_seed(k)
    logits, *row = arguments(4, vocabulary, [-1.0, 0.0, 0.7, 1.5], generator)
    ids = torch.randperm(50_000, generator=generator)[:vocabulary].sort().values
    ids = ids if with_ids else None
    want_ids, want_logprobs = reference.draft_topk(logits, k, *row, ids)
    got_ids, got_logprobs = run(logits, k, *row, ids, device)
    assert torch.equal(got_ids, want_ids)
    assert torch.allclose(got_logprobs, want_logprobs, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lowest_column(device):
    zero = torch.zeros(1, dtype=torch.int64)
    logits = torch.tensor([[-0.0, 2.0, 1.0, 2.0, 1.0, 2.0, 0.0]])
    ids, _ = run(logits, 7, torch.zeros(1), zero, zero, None, device)
    assert ids.tolist() == [[1, 3, 5, 2, 4, 0, 6]]
    # Across parts too.
    logits = torch.zeros(1, 2 * PART)
    logits[0, [PART - 1, PART, 5]] = 1
    ids, logprobs = run(logits, 5, torch.zeros(1), zero, zero, None, device)
    assert ids.tolist() == [[5, PART - 1, PART, 0, 1]]
    assert logprobs[0, 0] == logprobs[0, 2]


def test_logprobs_sum_to_one_and_impossible_tokens_come_last(device):
    generator = torch.Generator().manual_seed(4)
    logits, t, seed, position = arguments(2, 60, 1.0, generator)
    logits[:, ::2] = -torch.inf
    ids, logprobs = run(logits, 60, t, seed, position, None, device)
    assert torch.allclose(logprobs.double().exp().sum(-1), torch.ones(2, dtype=torch.float64))
    assert (ids[:, :30] % 2 == 1).all()
    assert (logprobs[:, 30:] == -torch.inf).all()


def test_a_part_without_any_possible_token(device):
    logits = torch.full((1, PART + 3), -torch.inf)
    logits[0, PART + 1] = 0.5
    zero = torch.zeros(1, dtype=torch.int64)
    ids, logprobs = run(logits, 3, torch.ones(1), zero, zero, None, device)
    assert ids.tolist() == [[PART + 1, 0, 1]]
    assert logprobs.tolist() == [[0.0, -torch.inf, -torch.inf]]


@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_a_row_of_nan_names_tokens_that_exist(nan, device):
    zero = torch.zeros(1, dtype=torch.int64)
    ids = torch.arange(1000, 1009)
    got, logprobs = run(torch.full((1, 9), nan), 9, torch.ones(1), zero, zero, ids, device)
    assert sorted(got[0].tolist()) == ids.tolist()
    assert logprobs.isnan().all()


def test_no_rows_and_too_many_tokens(device):
    none = torch.zeros(0, dtype=torch.int64)
    ids, logprobs = run(torch.zeros(0, 5), 2, torch.zeros(0), none, none, None, device)
    assert ids.shape == logprobs.shape == (0, 2)
    with pytest.raises(ValueError, match=r"k: expected 1 \.\. 64 on a GPU, got 65"):
        run(torch.zeros(0, 99), 65, torch.zeros(0), none, none, None, device)
