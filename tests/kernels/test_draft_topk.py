import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference


def arguments(rows, vocabulary, temperature, generator):
    return (
        torch.randn(rows, vocabulary, generator=generator) * 3,
        torch.full((rows,), temperature),
        torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        torch.randint(0, 2**40, (rows,), generator=generator),
    )


@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.7, 1.5])
@pytest.mark.parametrize(("vocabulary", "k"), [(1, 1), (17, 17), (1000, 4), (8191, 64)])
@pytest.mark.parametrize("with_ids", [False, True])
def test_equals_the_reference(vocabulary, k, temperature, with_ids):
    generator = torch.Generator().manual_seed(k)
    logits, t, seed, position = arguments(5, vocabulary, temperature, generator)
    ids = torch.randperm(50_000, generator=generator)[:vocabulary].sort().values
    ids = ids if with_ids else None
    want_ids, want_logprobs = reference.draft_topk(logits, k, t, seed, position, ids)
    got_ids, got_logprobs = kernels.draft_topk(logits, k, t, seed, position, ids)
    assert torch.equal(got_ids, want_ids)
    assert torch.allclose(got_logprobs, want_logprobs, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lowest_column():
    zero = torch.zeros(1, dtype=torch.int64)
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 2.0, 0.0]])
    ids, _ = kernels.draft_topk(logits, 5, torch.zeros(1), zero, zero)
    assert ids.tolist() == [[1, 3, 5, 2, 4]]


def test_the_first_choice_is_the_target_token_of_the_same_model():
    generator = torch.Generator().manual_seed(1)
    logits, t, seed, position = arguments(30, 500, 1.3, generator)
    ids, _ = kernels.draft_topk(logits, 1, t, seed, position)
    whole = torch.zeros(30), torch.zeros(30, dtype=torch.int32), torch.ones(30)
    # logits + T g and logits / T + g differ by the factor T, so the largest is the same.
    target = kernels.target_tokens(logits, t, whole[1], whole[2], whole[0], seed, position)
    assert torch.equal(ids[:, 0], target)


def test_logprobs_sum_to_one_and_impossible_tokens_come_last():
    generator = torch.Generator().manual_seed(4)
    logits, t, seed, position = arguments(3, 100, 1.0, generator)
    logits[:, ::2] = -torch.inf
    ids, logprobs = kernels.draft_topk(logits, 100, t, seed, position)
    assert torch.allclose(logprobs.double().exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert (ids[:, :50] % 2 == 1).all()
    assert (logprobs[:, 50:] == -torch.inf).all()


def test_no_rows_and_wrong_metadata():
    none = torch.zeros(0, dtype=torch.int64)
    ids, logprobs = kernels.draft_topk(torch.zeros(0, 5), 2, torch.zeros(0), none, none)
    assert ids.shape == logprobs.shape == (0, 2)
    zero, logits = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 5)
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"k: expected 1 \.\. 5, got {k}"):
            kernels.draft_topk(logits, k, torch.zeros(1), zero, zero)
    with pytest.raises(ValueError, match=r"token_ids: .* shape \[5\], got torch.int64 \[4\]"):
        kernels.draft_topk(logits, 2, torch.zeros(1), zero, zero, torch.arange(4))
