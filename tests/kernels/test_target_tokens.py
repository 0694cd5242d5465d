import math

import numpy as np
import pytest
import torch

import specedge_kernels as kernels
from specedge_kernels import reference
from tests.kernels.cases import int32, masks_of
from tests.kernels.hashes import positions_for

INF = math.inf


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


def exact_probabilities(logits, temperature, top_k, top_p, min_p):
    """Plain definition in Python floats, token by token."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    weights = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    if top_k:
        weights = weights[:top_k]
    kept, total, mass = [], sum(weights), 0.0
    for rank, weight in enumerate(weights):
        if rank and (mass >= top_p * total or weight < min_p * weights[0]):
            break
        kept.append(weight)
        mass += weight
    p = [0.0] * len(logits)
    for rank, weight in enumerate(kept):
        p[order[rank]] = weight / sum(kept)
    return p


def chi_square_limit(freedom):
    """The 1 - 1e-5 quantile, by Wilson and Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + 4.265 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize(
    "limits", [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (7, 0.9, 0.02)]
)
@pytest.mark.parametrize("varies", ["position", "seed"])
def test_draws_follow_the_exact_distribution(temperature, limits, varies):
    rows = 50_000
    row = [0.3, 1.1, -0.4, 2.0, 0.0, 1.7, -1.0, 0.9, 0.31, -2.0, 1.05]
    logits = torch.tensor(row).expand(rows, -1).contiguous()
    top_k, top_p, min_p = limits
    varied = {varies: torch.arange(rows)}
    tokens = kernels.target_tokens(logits, *draws(rows, temperature, top_k, top_p, min_p, **varied))
    counts = torch.bincount(tokens, minlength=len(row)).tolist()
    statistic, cells = 0.0, 0
    for count, p in zip(counts, exact_probabilities(row, temperature, *limits), strict=True):
        if p == 0:
            assert count == 0
        else:
            statistic += (count - rows * p) ** 2 / (rows * p)
            cells += 1
    assert cells > 1
    assert statistic < chi_square_limit(cells - 1)


@pytest.mark.parametrize("vocabulary", [1, 2, 15, 16, 17, 1000, 5003])
def test_tokens_equal_the_reference(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    rows = 24
    logits = torch.randn(rows, vocabulary, generator=generator) * 4

    arguments = mixed(rows, generator)
    want = reference.target_tokens(logits, *arguments)
    assert torch.equal(kernels.target_tokens(logits, *arguments), want)


def mixed(rows, generator):
    """Rows of all kinds in one batch."""

    def pick(values):
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=generator)]

    return draws(
        rows,
        pick([-1.0, 0.0, 0.05, 0.7, 1.0, 3.0]),
        pick([-1, 0, 1, 2, 40, 10_000]),
        pick([-0.5, 0.0, 0.1, 0.5, 0.95, 0.9999, 1.0, 2.0]),
        pick([0.0, 0.01, 0.3, 1.0, 2.0]),
        torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        torch.randint(0, 2**40, (rows,), generator=generator),
    )


@pytest.mark.parametrize("share", [0.5, 0.01, 0.999])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 31, 32, 33, 1000, 5003])
def test_masked_tokens_equal_the_reference(vocabulary, share):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(24, vocabulary, generator=generator) * 4
    logits[:, : vocabulary // 2] += 3
    arguments = *mixed(24, generator), *masks_of(24, vocabulary, share, generator)
    want = reference.target_tokens(logits, *arguments)
    assert torch.equal(kernels.target_tokens(logits, *arguments), want)
    assert -1 in want


@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.8, 0.0), (7, 0.9, 0.02)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_masked_draw_is_the_draw_among_what_is_allowed(limits, temperature):
    """The oracle: logits of -inf written out, bit by bit, by Python."""
    rows, vocabulary = 40, 70
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    mask, mask_row = masks_of(rows, vocabulary, 0.3, generator)
    arguments = draws(rows, temperature, *limits, seed=5, position=torch.arange(rows))
    written = logits.clone()
    for row, chosen in enumerate(mask_row.tolist()):
        for token in range(vocabulary if chosen >= 0 else 0):
            if not mask[chosen, token // 32].item() >> token % 32 & 1:
                written[row, token] = -INF
    got = kernels.target_tokens(logits, *arguments, mask, mask_row)
    assert torch.equal(got, kernels.target_tokens(written, *arguments))
    assert (got[mask_row == 0] == -1).all()


def test_what_is_forbidden_may_be_anything_and_is_never_drawn():
    logits = torch.zeros(4, 40)
    logits[:, 39] = torch.tensor([INF, float("nan"), 1e38, 3.0])
    allowed = int32([[-1, 0x7F]])
    for temperature in (0.0, 1.0):
        arguments = draws(4, temperature, position=torch.arange(4))
        rows = int32([0, 0, 0, 0])
        assert (kernels.target_tokens(logits, *arguments, allowed, rows) != 39).all()
        got = kernels.target_tokens(logits, *arguments, allowed, rows - 1)
        assert got[:3].tolist() == [-1, -1, 39]


def test_masks_are_named_by_rows_that_exist_and_both_are_given():
    logits, arguments = torch.zeros(2, 40), draws(2)
    mask = torch.full((3, 2), -1, dtype=torch.int32)
    for wrong in (-2, 3, 2**31 - 1, -(2**31)):
        with pytest.raises(
            ValueError, match=rf"row 1: expected a mask row in -1 \.\. 2, got {wrong}"
        ):
            kernels.target_tokens(logits, *arguments, mask, int32([0, wrong]))
    with pytest.raises(ValueError, match="mask and mask_row: expected both or neither, got one"):
        kernels.target_tokens(logits, *arguments, mask)
    with pytest.raises(ValueError, match=r"mask: .* shape \[any, 2\], got torch.int32 \[3, 1\]"):
        kernels.target_tokens(logits, *arguments, mask[:, :1].contiguous(), int32([0, 0]))
    no_masks = kernels.target_tokens(logits, *arguments, mask[:0], int32([-1, -1]))
    assert torch.equal(no_masks, kernels.target_tokens(logits, *arguments))
    with pytest.raises(ValueError, match=r"row 0: expected a mask row in -1 \.\. -1, got 0"):
        kernels.target_tokens(logits, *arguments, mask[:0], int32([0, -1]))


@pytest.mark.parametrize("temperature", [1e-45, 1e38, INF, math.nan])
def test_extreme_temperatures_with_impossible_tokens(temperature):
    logits = torch.randn(4, 99, generator=torch.Generator().manual_seed(3))
    logits[:, ::2] = -INF
    limits = (torch.tensor([0, 0, 3, 0]), torch.tensor([1.0, 0.9, 0.5, 1.0]))
    min_p = torch.tensor([0.0, 0.0, 0.1, 0.2])
    arguments = draws(4, temperature, *limits, min_p, position=torch.arange(4))
    want = reference.target_tokens(logits, *arguments)
    assert torch.equal(kernels.target_tokens(logits, *arguments), want)
    assert (want % 2 == 1).all()


def test_a_flat_nucleus_reaches_deep_and_equals_the_reference():
    generator = torch.Generator().manual_seed(5)
    logits = torch.rand(8, 4000, generator=generator) * 30 - 15
    arguments = draws(8, 8.0, 0, torch.linspace(0.6, 0.999999, 8), 0.0, 3, torch.arange(8))
    want = reference.target_tokens(logits, *arguments)
    assert torch.equal(kernels.target_tokens(logits, *arguments), want)


def lifted(logits, token, **limits):
    """What is drawn where the token's noise is the largest there is, 44.36."""
    words = [np.array([x], np.uint64) for x in (0, 7, token)]
    position = positions_for(*words).view(np.int64)
    arguments = draws(1, **limits, seed=7, position=torch.from_numpy(position))
    return kernels.target_tokens(logits[None], *arguments).item()


@pytest.mark.parametrize("top_p", [0.5, 1 - 2.0**-10, 1 - 2.0**-17, 1 - 2.0**-24])
@pytest.mark.parametrize("top_k", [0, 3500])
def test_a_nucleus_equal_to_its_exact_sum_reaches_far_below_the_best(top_p, top_k):
    """The last token that top-p keeps can be drawn, the next cannot: sums in exact arithmetic."""
    logits = torch.rand(4000, generator=torch.Generator().manual_seed(8)) * -30
    order = logits.sort(descending=True, stable=True).indices.tolist()
    weights = [math.exp(logits[i].item() - logits[order[0]].item()) for i in order][: top_k or None]
    wanted = top_p * math.fsum(weights)
    n_kept = next(n for n in range(1, len(weights)) if math.fsum(weights[:n]) >= wanted)
    assert lifted(logits, order[n_kept - 1], top_k=top_k, top_p=top_p) == order[n_kept - 1]
    assert lifted(logits, order[n_kept], top_k=top_k, top_p=top_p) in order[:n_kept]


@pytest.mark.parametrize("top_k", [0, 8])
def test_a_nucleus_that_is_reached_exactly_has_no_token_more(top_k):
    """Half of eight equal tokens are four, and a quarter of them two: those of the lowest ids."""
    for top_p, kept in ((0.5, {0, 1, 2, 3}), (0.25, {0, 1})):
        parameters = draws(400, top_k=top_k, top_p=top_p, position=torch.arange(400))
        logits = torch.zeros(400, 8)
        assert set(kernels.target_tokens(logits, *parameters).tolist()) == kept
        assert set(reference.target_tokens(logits, *parameters).tolist()) == kept


@pytest.mark.parametrize("min_p", [0.1, 1e-7, 1e-12])
def test_tokens_beside_min_p_far_below_the_best_are_kept_as_its_definition_says(min_p):
    depth = -math.log(min_p)
    logits = torch.tensor([3.0, -80, 3 - depth * 1.00001, 3 - depth * 0.99999])
    assert lifted(logits, 3, min_p=min_p) == 3
    assert lifted(logits, 2, min_p=min_p) in (0, 3)


def test_a_token_exactly_at_min_p_is_kept_and_the_next_number_below_is_not():
    at = np.float32(math.log(0.5))
    for logit, kept in ((at, {0, 1}), (np.nextafter(at, np.float32(-1)), {0})):
        logits = torch.tensor([0.0, float(logit)]).expand(400, 2).contiguous()
        parameters = draws(400, min_p=0.5, position=torch.arange(400))
        assert set(kernels.target_tokens(logits, *parameters).tolist()) == kept
        assert set(reference.target_tokens(logits, *parameters).tolist()) == kept


def test_a_min_p_beyond_1_leaves_one_token_of_the_likeliest():
    logits, parameters = torch.zeros(100, 3), draws(100, min_p=2.0, position=torch.arange(100))
    assert set(kernels.target_tokens(logits, *parameters).tolist()) == {0}
    assert set(reference.target_tokens(logits, *parameters).tolist()) == {0}


def test_ties_go_to_the_lowest_id():
    logits = torch.zeros(3, 50)
    logits[1, 20:] = 1
    logits[2, [7, 30]] = 5
    assert kernels.target_tokens(logits, *draws(3, 0.0)).tolist() == [0, 20, 7]
    # top_k cuts inside a tie: only the lowest ids are drawn.
    rows = 300
    tokens = kernels.target_tokens(
        torch.zeros(rows, 50), *draws(rows, 1.0, top_k=3, position=torch.arange(rows))
    )
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (4, 0.9, 0.01)])
def test_poisoned_rows_are_marked_and_their_neighbours_are_not_touched(temperature, limits):
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(6, 99, generator=generator)
    arguments = draws(6, temperature, *limits, seed=4, position=torch.arange(6))
    clean = kernels.target_tokens(logits, *arguments)
    poisoned = logits.clone()
    poisoned[0, 98] = float("nan")
    poisoned[1, 0] = float("nan")
    poisoned[2, 5] = INF
    poisoned[3] = -INF
    poisoned[4, logits[4].argsort()[:60]] = -INF
    got = kernels.target_tokens(poisoned, *arguments)
    assert got[:4].tolist() == [-1] * 4
    assert got[5] == clean[5]
    assert torch.equal(got, reference.target_tokens(poisoned, *arguments))


def test_a_row_does_not_depend_on_the_others_or_on_threads():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(40, 3000, generator=generator)
    arguments = draws(40, 0.9, 0, 0.9, 0.0, torch.arange(40), torch.arange(40) * 3)
    mask, mask_row = masks_of(40, 3000, 0.3, generator)
    arguments = (*arguments, mask_row)

    def draw(*rows):
        return kernels.target_tokens(*rows[:-1], mask, rows[-1])

    alone = [draw(logits[i : i + 1], *(a[i : i + 1] for a in arguments)).item() for i in range(40)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert draw(logits, *arguments).tolist() == alone
    finally:
        torch.set_num_threads(before)


def test_no_rows_and_wrong_metadata():
    assert kernels.target_tokens(torch.zeros(0, 5), *draws(0)).shape == (0,)
    logits = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"logits: expected at least one token, got \[2, 0\]"):
        kernels.target_tokens(torch.zeros(2, 0), *draws(2))
    with pytest.raises(ValueError, match="logits: expected a contiguous float32"):
        kernels.target_tokens(logits.double(), *draws(2))
    with pytest.raises(ValueError, match=r"temperature: .* shape \[2\], got torch.float32 \[3\]"):
        kernels.target_tokens(logits, *draws(3))
    seed_as_int32 = (*draws(2)[:4], torch.zeros(2, dtype=torch.int32), draws(2)[5])
    with pytest.raises(ValueError, match="seed: expected a contiguous int64"):
        kernels.target_tokens(logits, *seed_as_int32)
