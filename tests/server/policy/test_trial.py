"""The price of finding out: at most 5 % of any 64 tokens unless drafting has proven itself."""

import random
from itertools import pairwise

import pytest

from runtime.server.policy.trial import SLACK_TOKENS, SURE_ROUNDS, WINDOW_TOKENS, Trial


def rounds(seed: int, quality: float, overhead: float, tokens: int) -> list[tuple[int, float]]:
    """(tokens, time in plain tokens) of every verdict, with a trial deciding each."""
    rng = random.Random(seed)
    trial, taken, done = Trial(), [], 0
    expected = 1 + sum(quality**depth for depth in range(1, 5))
    while done < tokens:
        trial.expect(expected / (1 + overhead))
        if 1 + overhead <= trial.most_tokens:
            count = 1 + next((i for i in range(4) if rng.random() >= quality), 4)
            trial.drafted(count, 1 + overhead)
            taken.append((count, 1 + overhead))
        else:
            trial.plain()
            taken.append((1, 1.0))
        done += taken[-1][0]
    return taken


def worst_window(taken: list[tuple[int, float]]) -> float:
    worst = 0.0
    for start in range(len(taken)):
        tokens, time = 0, 0.0
        for count, round_time in taken[start:]:
            tokens, time = tokens + count, time + round_time
            if tokens >= WINDOW_TOKENS:
                worst = max(worst, time / tokens)
                break
    return worst


@pytest.mark.parametrize("overhead", [0.1, 0.8, 1.5, 3.0, 9.0])
@pytest.mark.parametrize("quality", [0.0, 0.2, 0.4])
def test_no_64_tokens_are_more_than_5_percent_slower(quality: float, overhead: float) -> None:
    # none of these gains a quarter over plain decoding, save the cheapest round
    for seed in range(8):
        assert worst_window(rounds(seed, quality, overhead, 1500)) <= 1.05 + 1e-9


def test_a_good_edge_goes_on_and_gains() -> None:
    for seed in range(8):
        taken = rounds(seed, quality=0.8, overhead=1.0, tokens=4000)
        plain = sum(count == 1 and time == 1.0 for count, time in taken)
        assert plain < 400
        assert sum(time for _, time in taken) < 0.65 * 4000


def test_a_hopeless_edge_is_tried_ever_more_rarely() -> None:
    taken = rounds(0, quality=0.0, overhead=1.0, tokens=6000)
    tried = [index for index, (_, time) in enumerate(taken) if time > 1.0]
    assert len(tried) <= 3 * 12
    gaps = [b - a for a, b in pairwise(tried) if b - a > 1]
    assert gaps == sorted(gaps)
    assert min(gaps) >= WINDOW_TOKENS


def test_a_collapse_ends_drafting() -> None:
    trial = Trial()
    for _ in range(50):
        trial.expect(3.0)
        assert trial.most_tokens >= 1 + SLACK_TOKENS
        trial.drafted(4, 1.5)
    assert trial.most_tokens == float("inf")
    assert trial.slack_tokens == SLACK_TOKENS
    trial.expect(0.7)
    assert trial.most_tokens < 1.01
    assert trial.slack_tokens == 0.0


def test_a_round_may_take_what_is_left_of_the_slack() -> None:
    trial = Trial()
    assert trial.most_tokens == 1 + SLACK_TOKENS
    trial.drafted(1, 2.5)
    assert trial.most_tokens == pytest.approx(SLACK_TOKENS - 0.5)


@pytest.mark.parametrize("overhead", [0.02, 0.08, 0.3, 0.7, 1.6])
def test_an_edge_with_nothing_to_send_costs_3_percent_between_its_drafts(overhead: float) -> None:
    """Each round without a draft, and what follows it until the edge is asked again."""
    trial, times = Trial(), []
    for _ in range(2000):
        if 1 + overhead <= trial.most_tokens:
            trial.nothing_drafted(1 + overhead)
            times.append(1 + overhead)
        else:
            trial.plain()
            times.append(1.0)
    asked = [place for place, time in enumerate(times) if time > 1]
    stretches = [times[start:end] for start, end in pairwise(asked)]
    assert len(stretches) >= 3
    for stretch in stretches:
        assert sum(stretch) <= len(stretch) * 1.03 + 0.03 + 1e-9, "but for a part of a token"
    assert worst_window([(1, time) for time in times]) <= 1.05 + 1e-9


def test_what_an_edge_sends_again_is_no_longer_waited_for() -> None:
    trial = Trial()
    trial.nothing_drafted(1.3)
    assert trial.most_tokens == 0.0
    for _ in range(9):
        assert trial.most_tokens == 0.0
        trial.plain()
    assert trial.most_tokens == pytest.approx(1 + SLACK_TOKENS - 0.3)
    trial.drafted(3, 1.5)
    assert trial.most_tokens == 1 + SLACK_TOKENS


def test_a_run_of_hits_proves_nothing_yet() -> None:
    """Two equal rounds have no deviation at all; the third may give nothing."""
    trial = Trial()
    for _ in range(SURE_ROUNDS):
        trial.expect(3.0)
        assert trial.most_tokens == 1 + SLACK_TOKENS
        trial.drafted(4, 1.5)
    trial.expect(3.0)
    assert trial.most_tokens == float("inf")
    trial.nothing_drafted(1.3)
    assert trial.most_tokens == float("inf"), "who gains so much need not be spared"


def test_what_may_be_lost_is_what_was_allowed_last() -> None:
    trial = Trial()
    trial.allow(10.0)
    assert trial.most_tokens == pytest.approx(11.0)
    trial.drafted(1, 3.0)
    assert trial.most_tokens == pytest.approx(9.0)
    trial.allow(0.0)  # less than every trial may lose
    assert trial.most_tokens == pytest.approx(9.0 - (10.0 - SLACK_TOKENS))
    trial.allow(10.0)
    trial.drafted(1, 9.0)
    trial.allow(0.0)
    assert trial.slack_tokens == 0.0, "what is lost already is not owed"


def test_plain_tokens_are_counted_from_the_last_draft_on() -> None:
    trial = Trial()
    for _ in range(3):
        assert not any(trial.plain() for _ in range(WINDOW_TOKENS - 1))
        trial.drafted(1, 1.5)
    assert [trial.plain() for _ in range(WINDOW_TOKENS)].count(True) == 1
