"""Offers: those that may give something when they arrive, and none of them twice."""

import math

import pytest

from runtime.edge.draft.offering import LEAST_TOKENS, RESERVE, Offering, ahead, due_s
from runtime.edge.draft.speculation import Noise, Proactive, Speculation, TreeShape
from runtime.tree import ROOT

SHAPE = TreeShape(max_budget=24, max_n_beams=4, max_beam_len=6, max_branch_width=4)


def chain(text: list[int], tokens: list[int], probability: float = 0.9) -> Speculation:
    """One that expects these tokens, each with a probability."""
    speculation = Speculation(list(text), 1000, SHAPE, Proactive.MULTI, Noise(), 1000)
    speculation.in_flight = False
    parent = ROOT
    for node, token in enumerate(tokens, start=1):
        speculation.tree.add_children(parent, [(token, math.log(probability))])
        parent = node
    return speculation


def test_what_is_decoded_by_then_counts_for_nothing() -> None:
    for on_the_way in range(1, 5):
        tree = Offering(at_once=True).next(chain([1, 2], [5, 6, 7]), on_the_way)
        assert (tree is not None) == (on_the_way < 3)
        if tree is not None:
            assert (tree.tokens, tree.parents) == ((5, 6, 7), (0, 1, 2))


def test_what_is_unlikely_is_not_offered() -> None:
    deep = math.sqrt(LEAST_TOKENS)
    assert Offering(at_once=True).next(chain([1], [5, 6], deep * 1.01), 1) is not None
    assert Offering(at_once=True).next(chain([1], [5, 6], deep * 0.99), 1) is None


def test_the_first_offer_of_one_that_takes_time_is_sent_whatever_it_is_worth() -> None:
    offering = Offering(at_once=False)
    assert offering.next(chain([1], []), 1) is None, "a message has one node at least"
    assert offering.next(chain([1], [5]), 1) is not None
    assert offering.next(chain([1], [6]), 1) is None


def test_what_was_offered_is_offered_again_only_with_something_new() -> None:
    offering = Offering(at_once=True)
    assert offering.next(chain([1], [5, 6, 7]), 1) is not None
    assert offering.next(chain([1], [5, 6, 7]), 1) is None
    assert offering.next(chain([1, 5], [6, 7]), 1) is None
    longer = offering.next(chain([1, 5], [6, 7, 8]), 1)
    assert longer is not None
    assert longer.tokens == (6, 7, 8)
    assert offering.next(chain([1, 5, 6], [7, 8]), 1) is None
    assert offering.nodes == 4, "each of them counts once"
    assert offering.next(chain([1, 5, 9], [7, 8]), 1) is not None, "the text went another way"
    assert offering.nodes == 6


def test_the_step_that_runs_counts_and_so_do_those_on_the_way() -> None:
    assert [ahead(rtt_s, 0.03) for rtt_s in (0.0, 0.015, 0.03, 0.031, 0.1)] == [1, 1, 1, 2, 4]
    assert ahead(0.1, 0.0) == 1


def test_an_offer_is_sent_so_that_it_is_there_in_time() -> None:
    """A little before the step that it is for, behind the way that the verdict and it have."""
    for steps, rtt_s, step_s in ((1, 0.0, 0.1), (1, 0.02, 0.1), (3, 0.02, 0.1)):
        arrives_s = rtt_s + due_s(steps, rtt_s, step_s)  # after the step that the verdict is of
        assert steps * step_s - arrives_s == pytest.approx(RESERVE * step_s)
