"""How many nodes are worth their rows: near the best of all numbers, whatever a step's curve is."""

import random

import pytest

from runtime.server.policy.budget import worthwhile_nodes
from runtime.server.policy.edge_profile import EdgeProfile
from runtime.server.policy.estimators import Acceptance
from runtime.server.policy.load import Load

MOST_NODES = 63


def of_memory(rows: int) -> float:
    """Weights are read once for up to 8 rows; from then on arithmetic costs."""
    return 0.03 + 0.0005 * max(0, rows - 8)


def of_experts(rows: int) -> float:
    """Every row wakes 8 of 64 experts, whose weights are read: the first rows cost most."""
    return 0.002 + 0.0512 * (1 - (1 - 8 / 64) ** rows) + 0.0001 * rows


@pytest.mark.parametrize("step_s", [of_memory, of_experts])
@pytest.mark.parametrize("chance", [0.3, 0.5, 0.7, 0.85])
def test_the_rate_of_tokens_comes_near_the_best(step_s, chance):
    load, edge, rng = Load(16, 256), EdgeProfile(MOST_NODES), random.Random(1)
    edge.acceptance = Acceptance(chance)
    load.opened(0.0)
    now_s, nodes = 0.0, 0
    for step in range(400):
        nodes = rng.choice((0, 1, 2, 4, 8, 16, 32, 63)) if step < 200 else nodes
        tokens, took_s = 1 + edge.acceptance.accepted(nodes), step_s(1 + nodes)
        now_s += took_s
        load.step_ended(1, 1 + nodes, 0, tokens, took_s, now_s)
        nodes = worthwhile_nodes(edge, load)

    def rate(n: int) -> float:
        return (1 + edge.acceptance.accepted(n)) / step_s(1 + n)

    assert rate(nodes) > 0.97 * max(map(rate, range(MOST_NODES + 1)))
