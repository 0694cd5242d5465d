import pytest
import torch

from specedge_kernels import reference
from specedge_kernels.gpu.route import route

PLAIN = {"scoring": "softmax", "normalise": False, "scale": 1.0}
NO_GROUPS = {"n_groups": 1, "top_groups": 1, "group_best": 2}
RULES = {
    "qwen2-moe": PLAIN | NO_GROUPS,
    "mixtral": PLAIN | NO_GROUPS | {"normalise": True},
    "deepseek-v2": PLAIN | {"scale": 16.0, "n_groups": 4, "top_groups": 2, "group_best": 1},
    "deepseek-v3": {
        **{"scoring": "sigmoid", "normalise": True, "scale": 2.5},
        **{"n_groups": 4, "top_groups": 2, "group_best": 2},
    },
}


@pytest.mark.parametrize("n_experts", [20, 128])
@pytest.mark.parametrize("family", RULES)
def test_equals_the_reference(family, n_experts, device):
    generator = torch.Generator().manual_seed(n_experts)
    logits = torch.randn(7, n_experts, generator=generator) * 3
    bias = torch.randn(n_experts, generator=generator) * 0.2 if "v3" in family else None
    rule = RULES[family]
    on_device = None if bias is None else bias.to(device)
    experts, weights = route(
        logits.to(device), 6, **{n: rule[n] for n in PLAIN}, bias=on_device,
        **{n: rule[n] for n in NO_GROUPS},
    )  # fmt: skip
    want = reference.route(logits, 6, bias=bias, **rule)
    assert torch.equal(experts.cpu(), want[0])
    torch.testing.assert_close(weights.cpu(), want[1], rtol=1e-5, atol=1e-7)


def test_ties_and_missing_numbers_leave_experts_that_exist(device):
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[1.0, 2, 2, 0, 2], [nan, 1, 2, 3, -inf], [-inf] * 5, [nan] * 5])
    rule = {**RULES["mixtral"], "bias": None}
    experts, _ = route(logits.to(device), 3, **rule)
    assert experts.tolist() == [[1, 2, 4], [3, 2, 1], [0, 1, 2], [0, 1, 2]]
