"""A promised time per token: when all decode plainly, and when drafts are tried again."""

import itertools
import math

import pytest

from runtime.server.policy.objective import LEAST_PATIENCE_TOKENS, Objective, Stretch
from runtime.server.policy.trial import SLACK_TOKENS, Trial

TOKEN_S = 0.1


def rounds(objective: Objective, round_s: float, tokens: int, until_s: float, plain_s=0.05):
    """Ten requests' verdicts, all at the same times; when all decoded plainly first."""
    stretches, now_s = [Stretch() for _ in range(10)], 0.0
    while now_s < until_s:
        for stretch in stretches:
            objective.verdict(stretch, tokens, plain_s, now_s)
        if objective.is_plain(now_s):
            return now_s
        now_s += round_s
    return math.inf


def test_drafts_that_keep_the_promise_go_on() -> None:
    assert math.isinf(rounds(Objective(TOKEN_S), 0.29, 3, 200.0))


def test_drafts_that_break_it_end_for_everybody() -> None:
    """As soon as it is clear: 64 tokens may take 6.4 s."""
    assert rounds(Objective(TOKEN_S), 0.31, 3, 200.0) == pytest.approx(6.4, abs=0.62)


def test_nothing_is_promised_without_an_objective() -> None:
    objective = Objective()
    assert math.isinf(rounds(objective, 10.0, 1, 2000.0))
    assert objective.slack_tokens(0.05) == 0
    assert Objective(TOKEN_S).slack_tokens(0.0) == 0, "of steps that are not known yet"


def test_drafts_go_on_where_plain_decoding_would_break_it_too() -> None:
    assert math.isinf(rounds(Objective(TOKEN_S), 0.31, 3, 200.0, plain_s=0.11))


def test_each_try_that_fails_is_followed_by_a_longer_pause() -> None:
    objective, now_s, pauses_s = Objective(TOKEN_S), 0.0, []
    stretches = [Stretch() for _ in range(10)]
    while len(pauses_s) < 5:
        for stretch in stretches:
            objective.verdict(stretch, 1, 0.05, now_s)
        if objective.is_plain(now_s):
            pauses_s.append(objective.plain_until_s - now_s)
            now_s = objective.plain_until_s
        now_s += 0.2
    first_s = LEAST_PATIENCE_TOKENS * TOKEN_S
    assert pauses_s == pytest.approx([first_s * factor for factor in (1, 2, 4, 8, 8)])


def test_one_late_stretch_in_a_hundred_is_no_reason() -> None:
    objective, late = Objective(TOKEN_S), 0
    for number in range(2000):
        stretch = Stretch(63, 0.0)
        is_late = number % 200 == 199
        objective.verdict(stretch, 1, 0.05, 6.5 if is_late else 6.3)
        late += is_late
    assert late == 10
    assert not objective.is_plain(6.5)


@pytest.mark.parametrize(("late", "is_broken"), [(1, False), (2, True)])
def test_two_late_stretches_in_a_hundred_break_the_promise(late: int, is_broken: bool) -> None:
    """99 % are promised, so one of a hundred may be late."""
    objective = Objective(TOKEN_S)
    for number in range(100):
        objective.verdict(Stretch(63, 0.0), 1, 0.05, 6.5 if number >= 100 - late else 6.3)
    assert objective.is_plain(6.5) is is_broken


def test_what_began_while_all_decoded_plainly_does_not_count_for_drafting() -> None:
    objective = Objective(TOKEN_S)
    for _ in range(2):
        objective.verdict(Stretch(63, 0.0), 1, 0.05, 6.5)
    again_s = objective.plain_until_s
    for _ in range(2):
        objective.verdict(Stretch(63, again_s - 10), 1, 0.05, again_s + 1)
    assert not objective.is_plain(again_s + 1)
    for _ in range(2):
        objective.verdict(Stretch(63, again_s), 1, 0.05, again_s + 10)
    assert objective.is_plain(again_s + 10)


def stretch_of(objective: Objective, tokens: int, took_s: float, plain_s: float = 0.05) -> None:
    """A stretch that begins when drafting does, whose last token brings it to so many."""
    begin_s = objective._drafting_since_s
    objective.verdict(Stretch(tokens - 1, begin_s), 1, plain_s, begin_s + took_s)


EIGHTH_S = 0.125  # a token: 64 of them take 8 s to the last bit


@pytest.mark.parametrize(
    ("tokens", "took_s", "is_late"),
    [(64, 8.0, False), (64, 8.001, True), (80, 10.0, False), (80, 10.001, True), (2, 8.001, True)],
)
def test_a_stretch_may_take_as_long_as_its_tokens_and_as_64_if_it_has_fewer(
    tokens: int, took_s: float, is_late: bool
) -> None:
    objective = Objective(EIGHTH_S)
    for _ in range(2):
        stretch_of(objective, tokens, took_s)
    assert objective.is_plain(took_s) is is_late


def test_plain_decoding_that_just_keeps_the_promise_is_for_all_until_a_time() -> None:
    objective = Objective(EIGHTH_S)
    for _ in range(2):
        stretch_of(objective, 64, 9.0, plain_s=EIGHTH_S)
    until_s = 9.0 + LEAST_PATIENCE_TOKENS * EIGHTH_S
    assert objective.is_plain(until_s - 0.001)
    assert not objective.is_plain(until_s)


def test_a_try_begins_with_nothing_counted() -> None:
    """One that is late is one of a hundred again."""
    objective = Objective(EIGHTH_S)
    for _ in range(2):
        stretch_of(objective, 64, 9.0)
    stretch_of(objective, 64, 9.0)
    assert not objective.is_plain(objective._drafting_since_s + 9.0)


def test_of_many_stretches_the_last_few_hundred_count() -> None:
    """Three late ones are more than 2 % of these, however many were on time before."""
    objective = Objective(EIGHTH_S)
    for _ in range(5000):
        stretch_of(objective, 64, 7.0)
    for _ in range(3):
        assert not objective.is_plain(9.0)
        stretch_of(objective, 64, 9.0)
    assert objective.is_plain(9.0)


def test_a_try_that_lasts_is_a_new_beginning() -> None:
    """After pauses of 1024 and 2048 tokens, drafts that keep the promise for longer than 4096."""
    objective, untils = Objective(EIGHTH_S), [0.0]
    for is_lasting in (False, False, True):
        if is_lasting:
            on_time_s = untils[-1] + 4100 * EIGHTH_S
            objective.verdict(Stretch(63, on_time_s - 7.0), 1, 0.05, on_time_s)
        for _ in range(2):
            stretch_of(objective, 64, 9.0)
        untils.append(objective.plain_until_s)
    pauses_s = [later - sooner - 9.0 for sooner, later in itertools.pairwise(untils)]
    assert pauses_s == [tokens * EIGHTH_S for tokens in (1024, 2048, 1024)]


def test_a_promise_leaves_drafts_what_it_does_not_need() -> None:
    """A token may take twice as long as plain: 64 of them may lose most of 64."""
    trial, objective = Trial(), Objective(TOKEN_S)
    assert objective.slack_tokens(TOKEN_S) == objective.slack_tokens(2 * TOKEN_S) == 0
    trial.allow(objective.slack_tokens(TOKEN_S / 2))
    assert 40 < trial.most_tokens - 1 < 64
    trial.drafted(1, 11.0)
    left = trial.most_tokens
    trial.allow(objective.slack_tokens(TOKEN_S / 2))
    assert trial.most_tokens == left
    trial.allow(0.0)
    assert trial.most_tokens - 1 <= SLACK_TOKENS
