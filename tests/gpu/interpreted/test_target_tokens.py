import math

import numpy as np
import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu import target_tokens as gpu
from specedge_kernels.gpu.target_tokens import CHUNK, target_tokens
from tests.kernels.cases import masks_of
from tests.kernels.hashes import positions_for

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def draws(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0):
    """The parameters of `rows` draws; a number stands for all rows."""

    def column(value, dtype):
        return torch.as_tensor(value).to(dtype).expand(rows).contiguous()

    return (
        column(temperature, torch.float32),
        column(top_k, torch.int32),
        column(top_p, torch.float32),
        column(min_p, torch.float32),
        column(seed, torch.int64),
        column(position, torch.int64),
    )


def run(logits, arguments, device):
    return target_tokens(logits.to(device), *(a.to(device) for a in arguments)).cpu()


@pytest.mark.parametrize("share", [0.5, 0.01])
@pytest.mark.parametrize("vocabulary", [1, 33, CHUNK + 1, 3 * CHUNK])
def test_masked_rows_equal_the_reference(vocabulary, share, device):
    """The best tokens are forbidden in some, and in one all are."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, vocabulary, generator=generator) * 4
    logits[:, : vocabulary // 2] += 3
    masks = masks_of(6, vocabulary, share, generator)
    check(logits, (*mixed(6, generator), *masks), device)


@pytest.mark.parametrize("capacity", [1, 60])
def test_a_masked_row_with_too_many_candidates_is_read_whole(capacity, device, monkeypatch):
    monkeypatch.setattr(gpu, "CAPACITY", capacity)
    generator = torch.Generator().manual_seed(capacity)
    logits = torch.randint(-9, 3, (6, CHUNK + 90), generator=generator).float()
    top_k, top_p = torch.tensor([0, 0, 0, 70, 200, 3]), torch.tensor([0.5, 0.9, 0.999, 1, 0.9, 1])
    arguments = draws(6, 1.5, top_k, top_p, 0.0, torch.arange(6), 7)
    check(logits, (*arguments, *masks_of(6, CHUNK + 90, 0.5, generator)), device)


def check(logits, arguments, device):
    want = reference.target_tokens(logits, *arguments)
    got = run(logits, arguments, device)
    assert got.tolist() == want.tolist()


def mixed(rows, generator):
    """Rows of all kinds in one batch."""

    def pick(values):
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]

    return draws(
        rows,
        pick([-1.0, 0.0, 0.05, 0.7, 1.0, 3.0]),
        pick([-1, 0, 1, 2, 3, 40, 10_000]),
        pick([-0.5, 0.0, 0.1, 0.5, 0.95, 0.9999, 1.0, 2.0]),
        pick([0.0, 0.01, 0.3, 1.0, 2.0]),
        torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        torch.randint(0, 2**40, (rows,), generator=generator),
    )


@pytest.mark.parametrize(
    "vocabulary", [1, 2, 17, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7, 17 * CHUNK]
)
def test_tokens_equal_the_reference(vocabulary, device):
    generator = torch.Generator().manual_seed(vocabulary)
    rows = 8 if vocabulary < 9 * CHUNK else 3
    logits = torch.randn(rows, vocabulary, generator=generator) * 4
    check(logits, mixed(rows, generator), device)


@pytest.mark.parametrize("capacity", [1, 60])
def test_a_row_with_too_many_candidates_is_read_whole(capacity, device, monkeypatch):
    monkeypatch.setattr(gpu, "CAPACITY", capacity)
    generator = torch.Generator().manual_seed(capacity)
    logits = torch.randn(8, CHUNK + 90, generator=generator) * 2
    check(logits, mixed(8, generator), device)


def test_every_filter_alone_and_together(device):
    """Values repeat, so that the cuts fall inside ties, and within one chunk or across chunks."""
    generator = torch.Generator().manual_seed(11)
    vocabulary = 2 * CHUNK + 100
    limits = [
        (1, 1.0, 0.0),
        (3, 1.0, 0.0),
        (vocabulary - 1, 1.0, 0.0),
        (vocabulary, 0.5, 0.0),
        (0, 1e-9, 0.0),
        (0, 0.5, 0.0),
        (0, 0.97, 0.0),
        (0, 0.999999, 0.0),
        (0, 1.0, 1e-3),
        (0, 1.0, 1.5),
        (5, 0.6, 0.2),
        (70, 0.9, 0.02),
        (0, 0.6, 0.3),
    ]
    rows = len(limits)
    top_k, top_p, min_p = (torch.tensor(column) for column in zip(*limits, strict=True))
    logits = torch.randint(-12, 3, (rows, vocabulary), generator=generator).float()
    check(logits, draws(rows, 1.5, top_k, top_p, min_p, torch.arange(rows), 3), device)


def position_won_by(token, logits, tokens, temperature):
    """A position whose noise lets `token` win among `tokens`."""
    among = torch.tensor(tokens)
    for position in range(1000):
        noisy = logits[among] / temperature + reference.gumbel(0, position, among)
        if among[noisy.argmax()] == token:
            return position
    raise AssertionError(f"{token} never wins")


@pytest.mark.parametrize(
    ("limits", "row", "kept"),
    [
        ((3, 1.0, 0.0), [0.0] * 10, [0, 1, 2]),
        ((0, 0.35, 0.0), [0.0] * 10, [0, 1, 2, 3]),
        ((4, 0.6, 0.0), [0.0] * 10, [0, 1, 2]),
        ((0, 1.0, 1.5), [0.0] * 10, [0]),
        ((2, 1.0, 0.0), [-0.0, 0.0, 0.0, -0.0], [0, 1]),
        ((3, 0.9, 0.0), [0.0, 1, 0, 1, 1, 1], [1, 3, 4]),
        ((5, 0.99, 0.0), [0.0, 1, 0, 1, 1, 1], [1, 3, 4, 5, 0]),
        ((0, 0.5, 1.0), [0.0, 1, 0, 1, 1, 1], [1, 3, 4]),
    ],
)
def test_cuts_inside_ties_keep_the_lowest_ids(limits, row, kept, device):
    """The first token left out is not drawn where it would win; the last one kept is."""
    logits = torch.tensor(row)
    left_out = min((i for i in range(len(row)) if i not in kept), key=lambda i: (-row[i], i))
    last, rival = (position_won_by(t, logits, [*kept, left_out], 4.0) for t in (kept[-1], left_out))
    arguments = draws(2, 4.0, *limits, position=torch.tensor([last, rival]))
    got = run(logits.expand(2, -1).contiguous(), arguments, device).tolist()
    assert got[0] == kept[-1]
    assert got[1] in kept


@pytest.mark.parametrize("step", [1, CHUNK + 3])
@pytest.mark.parametrize(("top_p", "n_kept"), [(0.3, 2), (0.6, 4), (0.95, 6)])
def test_the_last_token_of_a_nucleus_is_a_candidate(step, top_p, n_kept, device):
    """Few possible tokens, in one chunk or six, so that the bounds of what lies below are exact."""
    tokens = [step * i for i in range(6)]
    logits = torch.full((6 * CHUNK,), -INF)
    logits[tokens] = torch.tensor([0.0, -0.1, -0.2, -0.3, -0.4, -0.5])
    last = tokens[n_kept - 1]
    position = position_won_by(last, logits, tokens[:n_kept], 1.0)
    assert run(logits[None], draws(1, 1.0, 0, top_p, position=position), device).tolist() == [last]


def test_flat_nuclei_reach_deep(device):
    generator = torch.Generator().manual_seed(5)
    logits = torch.rand(3, 2000, generator=generator) * 30 - 15
    top_p = torch.tensor([0.6, 0.99, 0.999999])
    check(logits, draws(3, 8.0, 0, top_p, 0.0, 3, torch.arange(3)), device)


@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (0, 1.0, 1e-30)])
def test_noise_may_lift_a_token_from_as_far_below_as_it_goes(limits, device):
    """A chunk, or a token, is passed over only if its noise cannot let it win."""
    hashes = np.repeat(np.array([0, 1, 2**20 + 1, 2**40, 2**52 - 1, 2**59], np.uint64), 2)
    rows, token = len(hashes), np.uint64(CHUNK + 5)
    seeds = np.arange(rows, dtype=np.uint64)
    positions = positions_for(hashes, seeds, token)
    seed, position = (torch.from_numpy(words.view(np.int64)) for words in (seeds, positions))
    among = torch.tensor([0, int(token)])
    pairs = zip(seed.tolist(), position.tolist(), strict=True)
    lead, lifted = torch.stack([reference.gumbel(s, p, among) for s, p in pairs]).unbind(1)
    assert lifted.max() > 44.36
    logits = torch.full((rows, 2 * CHUNK), -INF)
    logits[:, 0] = 20
    logits[:, int(token)] = 20 - (lifted - lead) + torch.tensor([1e-4, -1e-4]).repeat(rows // 2)
    assert (logits[:, int(token)] < 20).all()
    got = run(logits, draws(rows, 1.0, *limits, seed=seed, position=position), device)
    assert got.tolist() == [int(token), 0] * (rows // 2)


def test_greedy_ties_go_to_the_lowest_id(device):
    logits = torch.zeros(4, 3 * CHUNK)
    logits[1, 20:] = 1
    logits[2, [2 * CHUNK, CHUNK + 30]] = 5
    logits[3, 1:] = -0.0
    assert run(logits, draws(4, 0.0), device).tolist() == [0, 20, CHUNK + 30, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (4, 0.9, 0.01), (0, 0.9, 0.0)])
def test_poisoned_rows_are_marked_and_their_neighbours_are_not_touched(temperature, limits, device):
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(6, CHUNK + 99, generator=generator)
    arguments = draws(6, temperature, *limits, seed=4, position=torch.arange(6))
    logits[0, -1] = float("nan")
    logits[1, 0] = -float("nan")
    logits[2, 5] = INF
    logits[3] = -INF
    logits[4, logits[4].argsort()[:500]] = -INF
    logits[5, :CHUNK] = -INF
    got = run(logits, arguments, device)
    assert got[:4].tolist() == [-1] * 4
    assert torch.equal(got, reference.target_tokens(logits, *arguments))


def test_large_numbers_and_hot_and_cold_rows(device):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(7, 700, generator=generator) * 3
    logits[1] *= 1e8
    logits[2] *= 1e30
    logits[3] *= 1e-30
    temperature = torch.tensor([1e-3, 1.0, 1e3, 1e-2, 1e6, 0.01, 1e-38])
    for limits in [(0, 1.0, 0.0), (9, 0.8, 0.0), (0, 0.8, 0.0)]:
        check(logits, draws(7, temperature, *limits, seed=8, position=torch.arange(7)), device)


def test_a_row_does_not_depend_on_the_others(device):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 1300, generator=generator)
    arguments = mixed(4, generator)
    together = run(logits, arguments, device).tolist()
    for i in range(4):
        alone = run(logits[i : i + 1], [a[i : i + 1] for a in arguments], device)
        assert alone.tolist() == together[i : i + 1]


@pytest.mark.parametrize("temperature", [1e-45, 1e38, INF, math.nan])
def test_extreme_temperatures_with_impossible_tokens(temperature, device):
    logits = torch.randn(4, CHUNK + 9, generator=torch.Generator().manual_seed(3))
    logits[:, ::2] = -INF
    limits = (torch.tensor([0, 0, 3, 0]), torch.tensor([1.0, 0.9, 0.5, 1.0]))
    min_p = torch.tensor([0.0, 0.0, 0.1, 0.2])
    check(logits, draws(4, temperature, *limits, min_p, position=torch.arange(4)), device)


def test_no_rows(device):
    assert run(torch.zeros(0, 5), draws(0), device).shape == (0,)


@pytest.mark.parametrize("top", [-5.0, 5.0])
def test_a_temperature_that_overflows_is_none(top, device):
    """logit / T is infinite for every token: what is left is the greatest logit."""
    logits = torch.full((4, CHUNK + 9), -20.0)
    logits[:, CHUNK + 3] = top
    arguments = draws(4, 1e-38, torch.tensor([0, 3, 0, 0]), torch.tensor([1.0, 1.0, 0.5, 1.0]))
    check(logits, (*arguments[:3], torch.tensor([0.0, 0.0, 0.0, 0.2]), *arguments[4:]), device)
    assert run(logits, arguments, device).tolist() == [CHUNK + 3] * 4
