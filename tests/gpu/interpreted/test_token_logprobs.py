import math

import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.draft_topk import PART
from specedge_kernels.gpu.token_logprobs import token_logprobs

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def random_rows(rows, vocabulary, seed):
    """Values that repeat, tokens that are impossible, and one -1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    logits[0] = logits[0].round()
    logits[1, torch.rand(vocabulary, generator=generator) < 0.4] = -INF
    logits[1, 0] = 1.0
    logits[2] += 1e4
    tokens = torch.randint(0, vocabulary, (rows,), generator=generator)
    tokens[3] = -1
    return logits, tokens


def check(got, logits, tokens, n):
    """Against float64, and the order of a stable sort."""
    want = reference.token_logprobs(logits, tokens, n)
    assert torch.equal(got[1], want[1])
    for have, due in ((got[0], want[0]), (got[2], want[2])):
        torch.testing.assert_close(have, due, rtol=1e-5, atol=1e-5, equal_nan=True)


def run(logits, tokens, n, device):
    return [result.cpu() for result in token_logprobs(logits.to(device), tokens.to(device), n)]


@pytest.mark.parametrize(("vocabulary", "n"), [(1, 0), (1, 1), (17, 5), (PART + 9, 3)])
def test_equals_the_reference(vocabulary, n, device):
    logits, tokens = random_rows(4, vocabulary, vocabulary)
    check(run(logits, tokens, n, device), logits, tokens, n)


@pytest.mark.parametrize("poison", [math.nan, INF])
def test_a_row_without_probabilities_says_so(poison, device):
    logits, tokens = random_rows(6, PART + 9, 3)
    logits[4, PART + 8], logits[5] = poison, -INF
    check(run(logits, tokens, 2, device), logits, tokens, 2)


def test_a_row_has_the_same_bits_alone_and_in_a_batch(device):
    logits, tokens = random_rows(4, 300, 1)
    together = run(logits, tokens, 3, device)
    for i in range(4):
        alone = run(logits[i : i + 1], tokens[i : i + 1], 3, device)
        for row, whole in zip(alone, together, strict=True):
            assert torch.equal(row[0].nan_to_num(7), whole[i].nan_to_num(7))


def test_no_rows_and_too_many_tokens(device):
    none = torch.zeros(0, dtype=torch.int64)
    assert run(torch.zeros(0, 5), none, 2, device)[1].shape == (0, 2)
    with pytest.raises(ValueError, match=r"n: expected 0 \.\. 64 on a GPU, got 65"):
        run(torch.zeros(0, 99), none, 65, device)
