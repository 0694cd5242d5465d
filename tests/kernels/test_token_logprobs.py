import math
import os
import subprocess
import sys

import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference

INF = math.inf


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
        torch.testing.assert_close(have, due, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("vocabulary", "n"), [(1, 0), (1, 1), (17, 5), (1000, 20), (5003, 64)])
def test_equals_the_reference(vocabulary, n):
    logits, tokens = random_rows(6, vocabulary, vocabulary)
    got = kernels.token_logprobs(logits, tokens, n)
    assert [list(x.shape) for x in got] == [[6], [6, n], [6, n]]
    check(got, logits, tokens, n)


def test_a_row_has_the_same_bits_alone_and_in_a_batch_and_on_threads():
    logits, tokens = random_rows(40, 3001, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = kernels.token_logprobs(logits, tokens, 3)
    finally:
        torch.set_num_threads(before)
    for i in range(40):
        alone = kernels.token_logprobs(logits[i : i + 1], tokens[i : i + 1], 3)
        for row, whole in zip(alone, together, strict=True):
            assert torch.equal(row[0].nan_to_num(7), whole[i].nan_to_num(7))


def test_all_probabilities_of_a_row_sum_to_one_and_impossible_ones_come_last():
    logits = torch.full((1, 50), -INF)
    logits[0, ::2] = torch.randn(25, generator=torch.Generator().manual_seed(2))
    _, tokens, logprobs = kernels.token_logprobs(logits, torch.tensor([1]), 50)
    assert abs(logprobs.double().exp().sum().item() - 1) < 1e-6
    assert (tokens[0, :25] % 2 == 0).all()
    assert tokens[0, 25:].tolist() == list(range(1, 50, 2))
    assert (logprobs[0, 25:] == -INF).all()


def test_ties_go_to_the_lowest_token():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, -0.0]])
    assert kernels.token_logprobs(logits, torch.tensor([0]), 5)[1].tolist() == [[1, 3, 2, 0, 4]]


@pytest.mark.parametrize("poison", [math.nan, -math.nan, INF])
def test_a_row_without_probabilities_says_so_and_its_neighbours_do_not_care(poison):
    logits, tokens = random_rows(6, 99, 3)
    clean = kernels.token_logprobs(logits, tokens, 2)
    logits[4, 98], logits[5] = poison, -INF
    got = kernels.token_logprobs(logits, tokens, 2)
    check(got, logits, tokens, 2)
    assert got[0][4:].isnan().all()
    assert (got[1][4:] == -1).all()
    assert got[2][4:].isnan().all()
    assert torch.equal(got[1][:4], clean[1][:4])


# Of every set that this processor runs: the bits of a few rows.
BITS = """
import torch, specedge_kernels
for width in (1, 15, 16, 17, 5003):
    logits = torch.randn(4, width, generator=torch.Generator().manual_seed(width)) * 5
    logprobs, tokens, tops = specedge_kernels.token_logprobs(logits, torch.zeros(4).long(), 1)
    print(logprobs.view(torch.int32).tolist(), tokens.tolist(), tops.view(torch.int32).tolist())
"""


def test_all_instruction_sets_give_the_same_bits():
    runs = [
        subprocess.run(
            [sys.executable, "-c", BITS],
            env={**os.environ, "SPECEDGE_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        for isa in ("generic", "avx2", "avx512")
    ]
    assert runs[0].stdout
    assert {run.stdout for run in runs} <= {"", runs[0].stdout}
