"""What the edge's page is told of a round, against the tree that the speculation goes on with."""

import random
from collections import Counter
from typing import Any

import pytest

from runtime.edge.draft.speculation import Noise, Proactive, Speculation, TreeShape
from runtime.edge.loop import Round
from runtime.pages.edge import MOST_AHEAD, round_fields
from runtime.wire.messages import Finish, Verdict
from tests.edge.drafting import random_pass, random_verdict

SHAPE = TreeShape(max_budget=10, max_n_beams=3, max_beam_len=4, max_branch_width=3)


def texts(fields: dict[str, Any], *states: str) -> list[str]:
    return [text for text, _, state in fields["nodes"] if state in states]


@pytest.mark.parametrize("proactive", Proactive)
@pytest.mark.parametrize("seed", range(8))
def test_every_node_is_drawn_as_what_became_of_it(seed: int, proactive: Proactive) -> None:
    rng = random.Random(seed)
    own = Speculation([7] * 5, 400, SHAPE, proactive, Noise(), 10**6)
    for number in range(1, 13):
        for _ in range(3):
            if frontier := own.frontier(SHAPE.max_budget):
                random_pass(own, frontier, rng)
        sent = own.send(SHAPE.max_budget)
        for _ in range(rng.randint(0, 5)):
            if frontier := own.frontier_ahead():
                random_pass(own, frontier, rng)
        grown = len(own.tree)
        node, bonus = random_verdict(rng, own)
        step = own.commit(node, bonus)
        verdict = Verdict(1, number, node, bonus, Finish.NONE, 3, 11)
        fields = round_fields(4, Round(verdict, step, 3, 0, waited_s=0.05), str)

        assert texts(fields, "accepted") == [*map(str, step.tokens[:-1])]
        assert fields["bonus"] == str(step.tokens[-1])
        assert fields["tokens"] == len(step.tokens)
        drawn = texts(fields, "accepted", "rejected")
        assert Counter(drawn) == Counter(map(str, sent.tokens))
        assert len(fields["nodes"]) == len(sent) + min(grown - len(sent), MOST_AHEAD)
        # what is of use is the next tree, and the node that it grows under
        beginning = texts(fields, "next")
        if grown - len(sent) <= MOST_AHEAD:
            following = [bonus, *own.tree.tokens[1:]] if step.hit else []
            assert Counter(beginning) == Counter(map(str, following))
        for place, (_, parent, _) in enumerate(fields["nodes"]):
            assert -1 <= parent < len(fields["nodes"])
            assert parent != place
        assert fields["round_trip_ms"] == pytest.approx(50 - 3 - 11)


def test_a_round_without_a_tree_has_no_nodes_and_no_round_trip() -> None:
    own = Speculation([7] * 5, 400, SHAPE, Proactive.MULTI, Noise(), 10**6)
    step = own.commit(0, 3)
    verdict = Verdict(1, 0, 0, 3, Finish.STOP, 0, 2)
    fields = round_fields(1, Round(verdict, step, 0, 0), str)
    assert fields["nodes"] == []
    assert fields["round_trip_ms"] is None
    assert fields["ended"]
