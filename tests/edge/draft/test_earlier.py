"""Texts that an edge has finished: kept up to a bound, trusted as far as they come again."""

import random
import sys
import threading

import pytest

from runtime.edge.draft.shares import EARLIER_WEIGHTS, LONGEST, WEIGHTS, Recalled, shares
from runtime.edge.draft.suffixes import Earlier, Suffixes, Trust

PROMPT = list(range(100, 120))


def own_text(tokens: list[int]) -> Suffixes:
    text = Suffixes()
    text.extend(tokens)
    return text


def recalled(*texts: list[int]) -> Recalled:
    earlier = Earlier(1000)
    for text in texts:
        earlier.add(text)
    return Recalled(earlier)


@pytest.mark.parametrize("most_tokens", [0, 1, 2, 7, 100])
def test_no_more_is_kept_than_was_said_and_the_last_text_is(most_tokens: int) -> None:
    """Each text is of tokens that no other has, so that whoever finds one finds it there."""
    rng, earlier, texts = random.Random(most_tokens), Earlier(most_tokens), []
    for number in range(60):
        text = list(range(1000 * number, 1000 * number + rng.randrange(1, 30)))
        texts.append(text)
        earlier.add(text)
        found = [token for text in texts for token in text if earlier.followers([token])]
        assert len(found) <= most_tokens
        kept = text[len(text) - min(len(text), most_tokens // 2) :]
        assert [token for token in text if earlier.followers([token])] == kept[:-1]


def test_a_longer_match_of_another_text_comes_first_and_leaves_the_rest_to_this_one() -> None:
    own = own_text([5, 7, 1, 2, 3, 9, 7])  # behind 7 alone: 1
    likely = shares(own, [9, 7], recalled([3, 9, 7, 8]))
    trust = Trust(EARLIER_WEIGHTS).of(2)
    assert likely == pytest.approx({1: (1 - trust) * WEIGHTS[1], 8: trust})
    assert shares(own, [9, 7], recalled([4, 7, 8])) == shares(own, [9, 7]), "as long as its own"
    assert shares(own_text([1]), [9, 7], recalled([4, 7, 8])) == {}, "one token says nothing"


def test_shares_never_exceed_one_whatever_is_learned() -> None:
    rng = random.Random(3)
    for _ in range(200):
        texts = [[rng.randrange(4) for _ in range(rng.randrange(40))] for _ in range(3)]
        known = recalled(*texts)
        own, answer = Suffixes(), [rng.randrange(4) for _ in range(60)]
        for place, token in enumerate(answer):
            tail = answer[max(place - LONGEST, 0) : place]
            likely = shares(own, tail, known)
            assert all(share > 0 for share in likely.values())
            assert sum(likely.values()) < 1
            known.learn(own, tail, token)
            own.extend([token])


def test_it_is_learned_whether_texts_come_again() -> None:
    """The same answer again is soon expected; where the next text is another one, less and less."""
    rng = random.Random(1)
    answer = [rng.randrange(50) for _ in range(200)]
    again, other = recalled([*PROMPT, *answer]), recalled([*PROMPT, *answer])
    drift = list(answer)
    for place in range(0, 200, 3):  # what comes is as before for two tokens, and then not
        drift[place] = 1000 + place
    for known, text in ((again, answer), (other, drift)):
        own = own_text(PROMPT)
        for place, token in enumerate(text):
            tail = [*PROMPT, *text[:place]][-LONGEST:]
            known.learn(own, tail, token)
            own.extend([token])
    assert again.trust.of(LONGEST) > 0.9
    assert other.trust.of(2) < EARLIER_WEIGHTS[2] * 8 / 9


def test_a_text_is_taken_in_while_others_are_looked_up() -> None:
    """A request ends in the drafter's thread; the event loop looks words up for others."""
    earlier, text = Earlier(1 << 20), [1, 2] * 20_000
    adding = threading.Thread(target=earlier.add, args=(text,))
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        adding.start()
        while adding.is_alive():
            assert {token for _, token in earlier.followers([1])} <= {2}
    finally:
        sys.setswitchinterval(interval_s)
        adding.join()
    assert earlier.followers([1])
