"""A history that grows against one that is counted anew."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from runtime.history import History

tokens = st.lists(st.integers(0, 40) | st.just(2**24 - 1), max_size=30)


@given(prompt=tokens, parts=st.lists(tokens, max_size=5), begun=st.integers(0, 5))
def test_it_is_what_a_count_of_the_whole_text_gives(
    prompt: list[int], parts: list[list[int]], begun: int
) -> None:
    """However much of the answer was there at the beginning, and in whichever portions it came."""
    before = [token for part in parts[:begun] for token in part]
    history = History([*prompt, *before], before)
    rest = [token for part in parts[begun:] for token in part]
    longer = history.followed_by(rest)
    for part in parts[begun:]:
        history.extend(part)
    assert (longer.tokens, longer.counts) == (history.tokens, history.counts)
    counts = Counter(token for part in parts for token in part)
    assert list(history.tokens) == sorted({*prompt, *counts})
    assert list(history.counts) == [counts[token] for token in history.tokens]
