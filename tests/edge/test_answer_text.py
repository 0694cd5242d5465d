"""Stop strings against the whole text searched at once, over any tokens, and how soon it shows."""

from hypothesis import example, given
from hypothesis import strategies as st

from runtime.edge.answer_text import AnswerText
from runtime.model.tokenizer import Tokenizer
from tests.conftest import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer(), [])
LETTERS = "ab€"
words = st.text(LETTERS, min_size=1, max_size=4)


def cut(text: str, stop: list[str]) -> str:
    """The oracle: everything in front of the leftmost stop string."""
    return text[: min([text.find(word) for word in stop if word in text], default=len(text))]


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.encode(text)  # a token for each byte


def shown_by(answer: AnswerText, tokens: list[int]) -> tuple[str, int]:
    """What is shown before the finish, and how many tokens it took to end."""
    shown = ""
    for count, token in enumerate(tokens, 1):
        shown += "".join(answer.push(token, drafted=False))
        if answer.ended:
            return shown, count
    return shown, len(tokens)


@given(text=st.text(LETTERS, max_size=24), stop=st.lists(words, max_size=4))
@example(text="abcd€", stop=["abcx", "b"])
@example(text="aab", stop=["ab"])
@example(text="b€", stop=["€", "b€b"])
@example(text="€€a", stop=["€a", "€€€"])
def test_the_text_ends_at_the_leftmost_stop_string(text: str, stop: list[str]) -> None:
    answer = AnswerText(TOKENIZER, stop)
    shown, _ = shown_by(answer, tokens_of(text))
    assert cut(text, stop).startswith(shown), "a part of a stop string was shown"
    assert shown + "".join(answer.finish()) == cut(text, stop)
    assert answer.finish() == []
    assert answer.ended == (cut(text, stop) != text)


@given(text=st.text(LETTERS, max_size=24), stop=st.lists(words, max_size=4))
def test_nothing_is_held_that_no_more_text_could_make_a_stop_string(
    text: str, stop: list[str]
) -> None:
    answer = AnswerText(TOKENIZER, stop)
    shown, _ = shown_by(answer, tokens_of(text))
    if not answer.ended:
        held = text.removeprefix(shown)
        assert not held or any(word.startswith(held) for word in stop)


@given(text=st.text(LETTERS, max_size=24), stop=st.lists(words, min_size=1, max_size=4))
def test_it_ends_with_the_first_token_that_decides_it(text: str, stop: list[str]) -> None:
    """Before it there was none, or something could have followed that moves the end."""
    answer, tokens = AnswerText(TOKENIZER, stop), tokens_of(text)
    _, count = shown_by(answer, tokens)
    if answer.ended:
        before = bytes_of(tokens[: count - 1]).decode(errors="ignore")
        rests = [
            word[size:]
            for word in stop
            for size in range(len(word))
            if before.endswith(word[:size])
        ]
        ends = {cut(before + rest, stop) for rest in ["", *rests]}
        assert cut(before, stop) == before or len(ends) > 1


def bytes_of(tokens: list[int]) -> bytes:
    return b"".join(TOKENIZER.token_bytes.get(token, first=False) or b"" for token in tokens)


@given(data=st.data())
def test_each_character_keeps_its_colour(data: st.DataObject) -> None:
    text = data.draw(st.text("ab", max_size=20))
    stop = data.draw(st.lists(words, max_size=2))
    drafted = [data.draw(st.booleans()) for _ in text]
    answer, pieces = AnswerText(TOKENIZER, stop), []
    for token, predicted in zip(tokens_of(text), drafted, strict=True):
        if not answer.ended:
            pieces += answer.push(token, predicted)
    pieces += answer.finish()
    colours = [piece.drafted for piece in pieces for _ in piece]
    assert colours == drafted[: len(cut(text, stop))]


def test_bytes_that_are_no_character_can_be_a_stop_string() -> None:
    answer = AnswerText(TOKENIZER, ["\N{REPLACEMENT CHARACTER}"])
    assert shown_by(answer, tokens_of("a€")[:-1]) == ("a", 3)
    assert answer.finish() == []
    assert answer.ended


@given(text=st.text(LETTERS, max_size=24), stop=st.lists(words, max_size=2))
def test_a_piece_says_which_tokens_it_shows(text: str, stop: list[str]) -> None:
    """The tokens up to a piece's end spell at least the text so far; without its last, less."""
    answer, tokens, shown, before = AnswerText(TOKENIZER, stop), tokens_of(text), "", 0
    pieces = [piece for token in tokens for piece in answer.push(token, drafted=token % 2 == 0)]
    for piece in [*pieces, *answer.finish()]:
        shown += piece
        assert before < piece.end <= len(tokens) or (before == piece.end == len(tokens))
        assert len(TOKENIZER.decode(tokens[: piece.end])) >= len(shown)
        assert len(TOKENIZER.decode(tokens[: piece.end - 1]).rstrip("\ufffd")) < len(shown)
        before = piece.end
