"""A request: which drafts it takes and how a verdict is cut at stop tokens and at the limit."""

import random

import pytest

from runtime.history import History
from runtime.server.request import RejectedDraft, Request
from runtime.tree import Tree
from runtime.wire.messages import Draft, Finish, Offer, Open, Rule, Turn


def request(context: int, limit: int, stop_ids: tuple[int, ...] = ()) -> Request:
    params = Open(
        request=1,
        seed=0,
        temperature=0.0,
        top_p=1.0,
        min_p=0.0,
        top_k=0,
        max_tokens=1,
        prompt_tokens=context,
        stop_ids=stop_ids,
    )
    return Request(key=1, params=params, limit=limit, context=list(range(100, 100 + context)))


def draft(base: int, parents: tuple[int, ...]) -> Draft:
    return Draft(1, 1, base, tuple(range(len(parents))), parents)


def test_a_draft_must_start_where_the_text_ends() -> None:
    with pytest.raises(RejectedDraft, match="after 4 tokens, but the accepted text has 5"):
        request(5, 20).accept_draft(draft(4, (0,)), now_s=0)


def test_a_request_has_one_draft_at_a_time() -> None:
    state = request(5, 20)
    state.draft = None
    state.accept_draft(draft(5, (0,)), now_s=0)
    with pytest.raises(AssertionError, match="has a draft already"):
        state.accept_draft(draft(5, (0,)), now_s=0)


def test_a_draft_may_not_reach_beyond_the_last_token() -> None:
    """With 3 tokens left, 2 may be drafted in a row: the third is the target's own."""
    state = request(5, 8)
    state.draft = None
    state.accept_draft(draft(5, (0, 1, 0)), now_s=2.5)
    assert state.draft is not None
    assert len(state.draft) == 3
    assert state.ready_s == 2.5
    with pytest.raises(RejectedDraft, match="3 tokens deep, but only 3 tokens are left"):
        state.accept_draft(draft(5, (0, 1, 2)), now_s=0)


@pytest.mark.parametrize("seed", range(200))
def test_advance_equals_appending_token_by_token(seed: int) -> None:
    rng = random.Random(seed)
    state = request(4, limit=4 + rng.randint(1, 8), stop_ids=(7,))
    state.target_stop_ids = frozenset({8} if seed % 2 else ())
    accepted = [rng.randint(0, 9) for _ in range(rng.randint(0, min(6, state.remaining - 1)))]
    bonus = rng.randint(0, 9)

    expected, finish = list(state.context), Finish.NONE
    for token in [*accepted, bonus]:
        expected.append(token)
        if token == 7 or token in state.target_stop_ids:
            finish = Finish.STOP
        elif len(expected) == state.limit:
            finish = Finish.LENGTH
        if finish is not Finish.NONE:
            break

    before = len(state.context)
    count, got = state.advance(accepted, bonus)
    assert state.context == expected
    assert got is finish
    assert state.finish is finish
    assert before + count + 1 == len(expected)
    assert state.cached == len(expected) - 1
    assert state.round == 1
    assert state.draft is None


@pytest.mark.parametrize("seed", range(20))
def test_a_history_grows_with_the_text(seed: int) -> None:
    """In whatever portions the prompt and the verdicts come; the resumed part counts as answer."""
    rng = random.Random(seed)
    prompt, said = [rng.randrange(9) for _ in range(6)], rng.randrange(6)
    params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 6, (), output_tokens=said)
    repetition = 1 + seed % 2
    rule = Rule(1, presence_penalty=0.5, repetition_penalty=repetition)
    state = Request(1, params, limit=60, context=[], rule=rule)
    assert not state.needs_text, "there is no text yet"
    assert not state.read(tuple(prompt[:4]))
    assert state.read(tuple(prompt[4:]))
    assert state.needs_text
    for _ in range(5):
        state.draft = Tree()
        state.advance([rng.randrange(9) for _ in range(rng.randrange(4))], rng.randrange(9))
    assert state.answer == state.context[6 - said :]
    # without a repetition penalty nobody looks at what only the prompt has
    anew = History(state.context if repetition != 1 else (), state.answer)
    assert (state.history.tokens, state.history.counts) == (anew.tokens, anew.counts)


def test_who_looks_at_no_text_keeps_no_history() -> None:
    for rule in (None, Rule(1, bias_ids=(3,), bias_values=(1.0,))):
        params = Open(1, 0, 0.0, 1.0, 0.0, 0, 50, 2, ())
        state = Request(1, params, limit=60, context=[], rule=rule)
        assert state.read((1, 2))
        assert state.history is None
        assert not state.needs_text


def offered(base: int, tokens: tuple[int, ...], state: Request) -> tuple[int, ...]:
    """What is left of a chain that is offered from there, behind the text."""
    state.take_offer(Offer(1, base, tokens, tuple(range(len(tokens)))))
    return state.offered.tokens


def test_an_offer_is_cut_at_the_end_of_the_text() -> None:
    state = request(5, 20)  # its text is 100 to 104
    state.turn = Turn.SERVER
    assert offered(5, (1, 2), state) == (1, 2)
    assert offered(3, (103, 104, 7, 8), state) == (7, 8)
    assert offered(3, (103, 104), state) == (7, 8), "nothing new: the one before stays"
    assert offered(3, (103, 9, 7), state) == (7, 8), "of another text"
    state.context += [7]
    assert state.offered.tokens == (8,)
    state.context += [9]
    assert len(state.offered) == 0


def test_an_offer_of_which_nothing_is_taken_is_kept_while_something_holds() -> None:
    state = request(5, 20)
    state.turn = Turn.SERVER
    assert offered(5, (1, 2, 3), state) == (1, 2, 3)
    assert not len(state.take_along(0))
    assert not state.takes_offer, "it follows its own step"
    state.context += [1]
    assert state.take_along(2).tokens == (2, 3)
    assert state.takes_offer
    state.context += [9]
    assert not len(state.take_along(2))
    assert state.offer is None
    assert not state.takes_offer


def test_an_offer_leaves_a_place_for_the_token_behind_it() -> None:
    state = request(5, 8)
    state.turn = Turn.SERVER
    assert offered(5, (1, 2, 3), state) == ()
    assert offered(5, (1, 2), state) == (1, 2)


def test_an_offer_from_beyond_the_text_is_no_offer() -> None:
    state = request(5, 20)
    state.turn = Turn.SERVER
    with pytest.raises(
        RejectedDraft, match="goes on from 6 tokens, but the accepted text has only"
    ):
        offered(6, (1,), state)


@pytest.mark.parametrize("turn", [None, Turn.EDGE, Turn.WAIT])
def test_an_offer_counts_while_the_server_decodes_plainly_alone(turn: Turn | None) -> None:
    state = request(5, 20)
    state.turn = turn
    assert offered(5, (1, 2), state) == ()
