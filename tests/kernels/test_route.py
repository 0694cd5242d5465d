import math

import pytest
import torch

import specedge_kernels as kernels


def by_hand(row, k, sigmoid=False, bias=None, n_groups=1, top_groups=1, group_best=2):
    """Chosen experts and scores of one row of logits, with Python's numbers and sorting."""
    exps = [math.exp(-x) for x in row] if sigmoid else [math.exp(x - max(row)) for x in row]
    scores = [1 / (1 + e) for e in exps] if sigmoid else [e / sum(exps) for e in exps]
    ranks = scores if bias is None else [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(row) // n_groups
    groups = [sorted(ranks[g * size : (g + 1) * size])[-group_best:] for g in range(n_groups)]
    best = sorted(range(n_groups), key=lambda g: -sum(groups[g]))[:top_groups]
    allowed = [e for e in range(len(row)) if n_groups == 1 or e // size in best]
    chosen = sorted(allowed, key=lambda e: -ranks[e])[:k]
    return chosen, [scores[e] for e in chosen]


RULES = {
    "mixtral": {"normalise": True},
    "qwen2-moe": {},
    "deepseek-v2": {"scale": 16.0, "n_groups": 4, "top_groups": 2, "group_best": 1},
    "deepseek-v3": {
        **{"scoring": "sigmoid", "normalise": True, "scale": 2.5},
        **{"n_groups": 4, "top_groups": 2},
    },
    "ernie": {"normalise": True},
}


@pytest.mark.parametrize("family", RULES)
def test_rules_of_families(family):
    generator = torch.Generator().manual_seed(len(family))
    logits = torch.randn(50, 32, generator=generator) * 3
    rule = dict(RULES[family])
    if family in ("deepseek-v3", "ernie"):
        rule["bias"] = torch.randn(32, generator=generator) * 0.2
    experts, weights = kernels.route(logits, 6, **rule)
    assert experts.dtype == torch.int32
    kept = {name: rule[name] for name in ("n_groups", "top_groups", "group_best") if name in rule}
    for row in range(50):
        bias = rule["bias"].tolist() if "bias" in rule else None
        chosen, scores = by_hand(
            logits[row].tolist(), 6, rule.get("scoring") == "sigmoid", bias, **kept
        )
        assert experts[row].tolist() == chosen
        total = sum(scores) if rule.get("normalise") else 1
        want = torch.tensor([s / total * rule.get("scale", 1) for s in scores])
        torch.testing.assert_close(weights[row], want, rtol=1e-6, atol=0)


def test_the_softmax_of_the_chosen_logits_alone_is_the_normalised_one():
    """gpt-oss and Granite choose first; that differs by rounding only."""
    logits = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)) * 5
    _, weights = kernels.route(logits, 4, normalise=True)
    want = logits.topk(4).values.double().softmax(-1)
    torch.testing.assert_close(weights.double(), want, rtol=1e-6, atol=1e-9)


def test_a_bias_chooses_and_does_not_weigh():
    bias = torch.tensor([0.0, 0, 0, 9])
    experts, weights = kernels.route(torch.zeros(1, 4), 2, scoring="sigmoid", bias=bias)
    assert experts.tolist() == [[3, 0]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_ties_go_to_the_lowest_expert():
    logits = torch.tensor([[1.0, 2, 2, 0, 2], [0, 0, 0, 0, 0]])
    assert kernels.route(logits, 3)[0].tolist() == [[1, 2, 4], [0, 1, 2]]
    # equal groups: 0 and 2 of 4
    grouped = torch.tensor([[1.0, 0, 0, 0, 0, 1, 0.5, 0]])
    experts, _ = kernels.route(grouped, 4, n_groups=4, top_groups=2)
    assert experts.tolist() == [[0, 5, 1, 4]]


def test_logits_that_are_too_close_for_their_scores_are_still_told_apart():
    logits = torch.tensor([[-40.0, 0.0, 60.0, -39.0]])
    assert kernels.route(logits, 4)[0].tolist() == [[2, 1, 3, 0]]
    assert kernels.route(logits, 4, scoring="sigmoid")[0].tolist() == [[2, 1, 3, 0]]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_infinite_logits_and_missing_numbers_leave_experts_that_exist(scoring):
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor(
        [[nan, 1, 2, 3], [1, 2, 3, nan], [-inf, 0, -inf, 1], [nan] * 4, [inf] * 4]
    )
    experts, weights = kernels.route(logits, 3, scoring=scoring)
    for row in experts.tolist():
        assert len(set(row)) == 3
        assert set(row) <= {0, 1, 2, 3}
    assert experts[:3].tolist() == [[3, 2, 1], [2, 1, 0], [3, 1, 0]]
    assert weights[2, 2] == 0
    if scoring == "softmax":
        assert weights[[0, 1, 3, 4]].isnan().all()


def test_a_row_has_the_same_bits_alone_and_with_any_threads(threads):
    logits = torch.randn(700, 64, generator=torch.Generator().manual_seed(1))
    threads(3)
    experts, weights = kernels.route(logits, 8)
    for row in (0, 350, 699):
        alone = kernels.route(logits[row : row + 1], 8)
        assert torch.equal(experts[row], alone[0][0])
        assert torch.equal(weights[row], alone[1][0])


def test_no_rows():
    experts, weights = kernels.route(torch.zeros(0, 4), 2)
    assert experts.shape == weights.shape == (0, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, r"k: expected 1 \.\. 8, got 0"),
        ({"k": 9}, r"k: expected 1 \.\. 8, got 9"),
        ({"scoring": "relu"}, "scoring: expected softmax or sigmoid, got relu"),
        ({"scale": float("nan")}, "scale: expected a finite float32"),
        ({"bias": torch.zeros(7)}, r"bias: expected .* \[8\], got"),
        ({"n_groups": 3}, "n_groups: expected a divisor of 8, got 3"),
        ({"n_groups": 4, "top_groups": 5}, r"top_groups: expected 1 \.\. 4, got 5"),
        ({"n_groups": 4, "k": 3}, "top_groups: expected groups of 3 experts together, got 1"),
        ({"n_groups": 4, "group_best": 3}, r"group_best: expected 1 \.\. 2, got 3"),
    ],
)
def test_wrong_rules_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        kernels.route(torch.zeros(2, 8), **{"k": 2, **wrong})
